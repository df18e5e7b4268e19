"""From a base model to its super-network: prepare, train the slices, measure them, merge, write a plain checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from unicuco.assess import hidden_states
from unicuco.calibration import Domain, Windows
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.checkpoint.card import versions
from unicuco.checkpoint.write import check_target
from unicuco.errors import SupernetError
from unicuco.models.hetero.attention_unicuco import use_fast_attention
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.pruners.depth import DepthPruner
from unicuco.recovery.corpus import Corpus, draw_corpus
from unicuco.recovery.training import TIMED_STEPS, Trained, Trainer, TrainProgress
from unicuco.reference import LOGITS_AT_ONCE, Reference, compare, next_tokens
from unicuco.space import Shape
from unicuco.storage import content_hash
from unicuco.supernet.config import SupernetConfig
from unicuco.supernet.draws import draw_subnetworks, ladder_shapes
from unicuco.supernet.elastic import Supernetwork
from unicuco.teacher import find_teacher

Stage = Callable[[str, int, int], None]
SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the blocks' parameters that are measured, as far as they are trained, and the whole network."""


@dataclass(frozen=True)
class SizeFigures:
    """One sub-network, chosen by predicted damages, before and after training: KL from the base model in nats per
    token, and perplexity, on text that was not trained on."""

    kept: float
    kl_before: float
    kl_after: float
    perplexity_before: float
    perplexity_after: float


@dataclass(frozen=True)
class SupernetReport:
    """What was done.

    Attributes:
        sizes: the whole network first.
        parameters: that were trained. tokens: that the figures were measured on.
    """

    folder: Path
    training: Trained
    sizes: tuple[SizeFigures, ...]
    parameters: int
    tokens: int
    perplexity: float
    """Of the base model."""


def train_supernet(
    model: str,
    output: Path,
    config: SupernetConfig,
    preparation: PreparationConfig | None = None,
    replace: bool = False,
    command: str | None = None,
    stage: Stage | None = None,
    progress: TrainProgress | None = None,
) -> SupernetReport:
    """Trains low-rank updates of ``model`` that serve its slices of all sizes, and writes the merged model.

    The result is a base model with its units in the order of their importance: ``unicuco train OUTPUT`` searches it,
    with quality still measured from ``model``. A run that was killed goes on where its state was last saved, when it
    is called again alike.

    Args:
        preparation: orders, and what output projections are re-solved with; by default, on the corpus.

    Raises:
        SupernetError, ModelError, CalibrationError, CheckpointError: before any work where possible; nothing
            half-written is left.
    """
    stage = stage or (lambda name, done, total: None)
    output = Path(output)
    check_target(output, replace)
    source = find_model(model)
    if find_teacher(source) is not None:
        raise SupernetError(f"{model} is a super-network already; train from the base model that it was trained from.")
    domain = Domain.parse(config.corpus)
    preparation = preparation or config.preparation()
    if preparation.space.pruner != "width":
        raise SupernetError(f"Super-networks are trained for the pruner 'width', not '{preparation.space.pruner}'.")
    tokenizer = load_tokenizer(source, config.trust_remote_code)
    seed = preparation.calibration.seed

    def draw(steps: int) -> Corpus:
        count = steps * config.batch
        return draw_corpus(domain, tokenizer, config.window_length, count, config.heldout_windows, seed)

    corpus = draw(TIMED_STEPS + 1)
    stage("loading the model", 0, 1)
    base = load_base_model(source, config.dtype, config.device, config.trust_remote_code)
    prepared = prepare(base, tokenizer, preparation, stage)
    use_fast_attention(base.model)
    network = Supernetwork(base, prepared, config.rank, config.seed)
    smallest = float(prepared.space.kept(prepared.space.smallest))
    sizes = tuple(kept for kept in SIZES if kept >= max(config.kept_low - 1e-9, smallest))
    shapes = [None, *ladder_shapes(prepared.space, prepared.damage, sizes)]
    measuring = _Measuring(network, corpus.heldout)
    before = measuring.figures(shapes, False, stage)
    key = _key(config, source.digest, prepared, corpus.heldout)
    state = output.parent / f".{output.name}.supernet-{key[:12]}.safetensors"
    trainer = Trainer(
        base.model, network, corpus.train, network.updates, config, state, key, _networks(network, prepared, config)
    )
    total = trainer.total()
    trainer.windows = draw(total).train
    training = trainer.run(total, progress)
    after = measuring.figures(shapes, True, stage)
    network.merge()

    found = tuple(
        SizeFigures(kept, was[0], now[0], was[1], now[1])
        for kept, was, now in zip((1.0, *sizes), before, after, strict=True)
    )
    tokens = corpus.heldout.tokens.size
    record = {
        "teacher": {"spec": _lasting(model, source.folder), "digest": source.digest},
        "config": config.model_dump(mode="json"),
        "preparation": prepared.digest,
        "steps": training.steps,
        "tokens_per_step": config.batch * config.window_length,
        "windows": len(trainer.windows),
        "seconds": training.seconds,
        "threads": torch.get_num_threads(),
        "sizes": [asdict(figures) for figures in found],
        "tokens_heldout": tokens,
        "versions": versions(),
    }
    measured = {f"kl_heldout_at_{figures.kept:g}": figures.kl_after for figures in found}
    calibration = preparation.calibration.model_dump(mode="json") | {"dtype": preparation.dtype}
    card = CheckpointCard(
        measured=measured, calibration=calibration, preparation=prepared.digest, command=command, supernet=record
    )
    stage("writing and reloading", 0, 1)
    pruner, whole = DepthPruner(base, "supernet"), prepared.space.shape(np.zeros(prepared.space.num_sites, np.int64))
    write_checkpoint(base, tokenizer, pruner, whole, output, "uniform", card, replace=replace)
    state.unlink(missing_ok=True)
    parameters = sum(p.numel() for p in trainer.parameters)
    return SupernetReport(output, training, found, parameters, tokens, measuring.perplexity)


def _networks(network: Supernetwork, prepared: Preparation, config: SupernetConfig) -> Callable[[int], Iterator[float]]:
    """What each step trains: its sub-networks, and the whole network every now and then (the sandwich rule)."""

    def networks(step: int) -> Iterator[float]:
        drawn = draw_subnetworks(prepared.space, prepared.damage, config, step)
        shapes: list[Shape | None] = [prepared.space.shape(levels) for levels in drawn]
        if step % config.whole_every == 0:
            shapes.append(None)
        for shape in shapes:
            network.set(shape)
            yield 1 / len(shapes)

    return networks


class _Measuring:
    """Keeps the base model's hidden states on the held-out text, and compares sub-networks with them."""

    def __init__(self, network: Supernetwork, text: Windows) -> None:
        self._network, self._text = network, text
        with network.as_shape(None, updated=False):
            self._dense, _ = hidden_states(network.base.model, text)
        _, self.perplexity = self._compared(self._dense)

    def figures(self, shapes: Sequence[Shape | None], updated: bool, stage: Stage) -> list[tuple[float, float]]:
        """KL from the base model and perplexity of every shape."""
        found = []
        for i, shape in enumerate(shapes):
            with self._network.as_shape(shape, updated):
                hidden, _ = hidden_states(self._network.base.model, self._text)
            found.append(self._compared(hidden))
            stage(f"measuring {'after' if updated else 'before'}", i + 1, len(shapes))
        return found

    @torch.inference_mode()
    def _compared(self, hidden: torch.Tensor) -> tuple[float, float]:
        head = self._network.head
        targets = next_tokens(self._text.tokens).to(head.device)
        found = compare(hidden, Reference(hidden=self._dense), targets, head, LOGITS_AT_ONCE)
        return float(found.forward.mean()), float(found.loss[targets >= 0].mean().exp())


def _lasting(model: str, folder: Path) -> str:
    """``model`` such that it means the same from wherever the super-network will be used."""
    return str(folder) if Path(model).expanduser().is_dir() else model


def _key(config: SupernetConfig, digest: str, prepared: Preparation, heldout: Windows) -> str:
    """What a state belongs to: everything that decides the weights."""
    settings = config.model_dump(mode="json", exclude={"save_every", "device"})
    return content_hash([1, settings, digest, prepared.digest, heldout.digest, torch.get_num_threads()])
