"""From a checkpoint and its base model to a recovered checkpoint of the same layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unicuco.assess import hidden_states
from unicuco.calibration import Domain, Windows, first_windows, read_text
from unicuco.checkpoint.card import PROVENANCE
from unicuco.checkpoint.write import check_target
from unicuco.errors import RecoveryError
from unicuco.models.head import Head
from unicuco.models.hetero.attention_unicuco import use_fast_attention
from unicuco.models.load import load_model, load_tokenizer
from unicuco.models.source import ModelSource, find_model
from unicuco.recovery.config import SELF, RecoveryConfig
from unicuco.recovery.corpus import BOS, PROMPT, Corpus, bos_prompts, draw_corpus, write_self_data
from unicuco.recovery.lora import LoRALinear, add_lora, merge_lora
from unicuco.recovery.save import write_recovered
from unicuco.recovery.training import TIMED_STEPS, DenseModel, Trained, Trainer, TrainProgress
from unicuco.reference import LOGITS_AT_ONCE, Reference, compare, next_tokens
from unicuco.storage import content_hash
from unicuco.teacher import reference_of

Stage = Callable[[str, int, int], None]
SECOND_TOKENS = 8192
"""First tokens of a second text that are measured on."""
SELF_WINDOWS = 256
"""Windows that the dense model writes at most; longer training goes through them again."""


@dataclass(frozen=True)
class TextFigures:
    """Perplexity, and KL from the dense model in nats per token, on text that was not trained on."""

    tokens: int
    perplexity_dense: float
    perplexity_before: float
    perplexity_after: float
    kl_before: float
    kl_after: float


@dataclass(frozen=True)
class RecoveryReport:
    """What was done.

    Attributes:
        texts: the corpus's held-out windows first, then the second text's, by name.
        trained_tokens: windows that were gone through more than once count each time.
    """

    folder: Path
    training: Trained
    trained_tokens: int
    texts: dict[str, TextFigures]
    parameters: int
    """That were trained."""


def recover(
    checkpoint: str,
    output: Path,
    config: RecoveryConfig,
    base: str | None = None,
    second: str | None = None,
    replace: bool = False,
    verify: bool = True,
    command: str | None = None,
    stage: Stage | None = None,
    progress: TrainProgress | None = None,
) -> RecoveryReport:
    """Trains low-rank updates of ``checkpoint`` towards its dense model and writes the merged result to ``output``.

    A run that was killed goes on where its state was last saved, when it is called again alike; the state lies beside
    ``output`` and goes when that is written.

    Args:
        base: the dense model; ``None``: the one that the checkpoint names.
        second: another text to measure on, before and after; nothing is chosen by it.
        verify: load the result in a fresh process and compare logits before keeping it.

    Raises:
        RecoveryError, CheckpointError, ModelError, CalibrationError: before any work where possible; nothing
            half-written is left.
    """
    import unicuco.models.hetero  # noqa: F401  (our checkpoints load without their own code)

    stage = stage or (lambda name, done, total: None)
    output = Path(output)
    check_target(output, replace)
    source = find_model(checkpoint)
    card = _card(source.folder)
    dense = find_model(base) if base else reference_of(find_model(_base_of(card, checkpoint)))
    if dense.digest == source.digest:
        raise RecoveryError(f"{checkpoint} is its own base model: there is nothing to recover.")
    domain, calibrated = _domain(config, card), card.get("calibration") or {}
    shuffle = calibrated.get("seed", 0) if isinstance(calibrated.get("seed", 0), int) else 0
    tokenizer = load_tokenizer(dense, config.trust_remote_code)

    def draw(steps: int) -> Corpus:
        count = steps * config.batch
        return draw_corpus(domain, tokenizer, config.window_length, count, config.heldout_windows, shuffle)

    corpus = draw(TIMED_STEPS + 1)
    measured_on = {domain.name: corpus.heldout} | _second(second, domain, tokenizer, config)

    stage("loading both models", 0, 1)
    teacher = load_model(dense, config.dtype, config.device, config.trust_remote_code)
    student = load_model(source, config.dtype, config.device, config.trust_remote_code)
    keep_zeros = not card or card.get("layout") == "padded" or card.get("zeros") is not None
    measuring = _Measuring(teacher, measured_on, stage)
    before = measuring.figures(student, "measuring before")
    key = _key(config, source, dense, corpus)
    state = output.parent / f".{output.name}.recovery-{key[:12]}.safetensors"
    added = add_lora(student, config.rank, config.seed, keep_zeros)
    trainer = Trainer(student, DenseModel(teacher), corpus.train, added, config, state, key)
    total = trainer.total()
    trainer.windows = _training_windows(config, draw(total).train, teacher, dense, tokenizer, stage)
    training = trainer.run(total, progress)

    changed = _merge(student, added)
    after = measuring.figures(student, "measuring after")
    texts = {name: TextFigures(*measuring.dense[name], *_pairs(before[name], after[name])) for name in measured_on}
    per_step = config.batch * config.window_length
    record = {
        "config": config.model_dump(mode="json"),
        "corpus": config.corpus if config.corpus != SELF else f"self ({domain.name})",
        "base_model": {"spec": dense.spec, "digest": dense.digest},
        "steps": training.steps,
        "tokens_per_step": per_step,
        "windows": len(trainer.windows),
        "seconds": training.seconds,
        "threads": torch.get_num_threads(),
        "command": command,
        "texts": {name: asdict(figures) for name, figures in texts.items()},
    }
    first = texts[domain.name]
    measured = {
        "kl_heldout": first.kl_after,
        "perplexity_heldout": first.perplexity_after,
        "perplexity_heldout_dense": first.perplexity_dense,
        "tokens_heldout": first.tokens,
    }
    stage("writing and reloading", 0, 1)
    remote = any(source.folder.glob("*.py"))
    write_recovered(source.folder, output, student, changed, record, measured, remote, replace, verify)
    state.unlink(missing_ok=True)
    trained = sum(p.numel() for p in trainer.parameters)
    return RecoveryReport(output, training, training.steps * per_step, texts, trained)


class _Measuring:
    """Keeps the dense model's hidden states on every text, and compares others with them."""

    def __init__(self, teacher: Any, texts: dict[str, Windows], stage: Stage) -> None:
        use_fast_attention(teacher)
        self._head, self._texts, self._stage = Head(teacher), texts, stage
        self._hidden = {name: hidden_states(teacher, text)[0] for name, text in texts.items()}
        self.dense: dict[str, tuple[int, float]] = {}
        for name, text in texts.items():
            perplexity, _ = self._compare(name, self._hidden[name], self._head)
            self.dense[name] = (text.tokens.size, perplexity)

    def figures(self, model: Any, name: str) -> dict[str, tuple[float, float]]:
        """Perplexity and KL of ``model`` on every text."""
        use_fast_attention(model)
        found = {}
        for i, (text, windows) in enumerate(self._texts.items()):
            found[text] = self._compare(text, hidden_states(model, windows)[0], Head(model))
            self._stage(name, i + 1, len(self._texts))
        return found

    @torch.inference_mode()
    def _compare(self, name: str, hidden: torch.Tensor, head: Head) -> tuple[float, float]:
        targets = next_tokens(self._texts[name].tokens).to(head.device)
        found = compare(hidden, Reference(hidden=self._hidden[name]), targets, head, LOGITS_AT_ONCE, self._head)
        return float(found.loss[targets >= 0].mean().exp()), float(found.forward.mean())


def _pairs(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float, float, float]:
    """Perplexity before and after, KL before and after."""
    return before[0], after[0], before[1], after[1]


def _merge(student: Any, added: dict[str, LoRALinear]) -> dict[str, torch.Tensor]:
    """The merged weights, by their names in the checkpoint."""
    merge_lora(student, added)
    student.eval()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return {f"{name}.weight": update.layer.weight for name, update in added.items()}


def _training_windows(
    config: RecoveryConfig, drawn: np.ndarray, teacher: Any, dense: ModelSource, tokenizer: Any, stage: Stage
) -> np.ndarray:
    """``drawn`` itself, or what the dense model makes of its beginnings."""
    if config.corpus != SELF:
        return drawn
    count = min(len(drawn), SELF_WINDOWS)
    prompts = bos_prompts(tokenizer, count) if config.prompts == BOS else drawn[:count, :PROMPT]
    use_fast_attention(teacher)
    return write_self_data(teacher, dense.digest, prompts, config.window_length, config.seed, stage)


def _second(second: str | None, domain: Domain, tokenizer: Any, config: RecoveryConfig) -> dict[str, Windows]:
    if second is None:
        return {}
    other = Domain.parse(second)
    if other.name == domain.name:
        raise RecoveryError(f"The second text is called '{other.name}' like the corpus; name it: NAME=SOURCE.")
    return {other.name: first_windows(read_text(other), tokenizer, SECOND_TOKENS, config.window_length, other.name)}


def _domain(config: RecoveryConfig, card: dict[str, Any]) -> Domain:
    """The text that windows are held out of, and trained on or continued."""
    if config.corpus != SELF:
        return Domain.parse(config.corpus)
    if config.prompts not in (None, BOS):
        return Domain.parse(str(config.prompts))
    try:
        return Domain.model_validate(card["calibration"]["domains"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return Domain.parse("sotu")


def _key(config: RecoveryConfig, source: ModelSource, dense: ModelSource, corpus: Corpus) -> str:
    """What a state belongs to: everything that decides the weights. Held-out windows stand for their whole text."""
    settings = config.model_dump(mode="json", exclude={"save_every", "device"})
    return content_hash([1, settings, source.digest, dense.digest, corpus.heldout.digest, torch.get_num_threads()])


def _card(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _base_of(card: dict[str, Any], checkpoint: str) -> str:
    try:
        return str(card["base_model"]["spec"])
    except (KeyError, TypeError):
        raise RecoveryError(f"{checkpoint} does not name its base model; give it with --base.") from None
