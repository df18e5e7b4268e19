"""Judging a checkpoint as its users will get it: loaded by transformers, beside its base model, on any text."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unicuco.calibration import CalibrationConfig, Domain, Windows, draw_windows, first_windows, read_text
from unicuco.errors import ModelError
from unicuco.models.head import Head
from unicuco.models.load import load_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.reference import LOGITS_AT_ONCE, Reference, compare


@dataclass(frozen=True)
class Assessment:
    """Figures of one model on one text, nats per token.

    Attributes:
        kl, kl_reverse: from the base model; ``None`` when there is none to compare with.
        parameters: all of them, tied ones once.
        seconds: wall time of this model's forwards.
    """

    model: str
    parameters: int
    perplexity: float
    kl: float | None
    kl_reverse: float | None
    tokens: int
    seconds: float


def assess(
    model: str,
    base: str | None = None,
    text: str = "sotu",
    tokens: int = 20480,
    window_length: int = 2048,
    seed: int | None = None,
    dtype: str = "bfloat16",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> list[Assessment]:
    """Perplexity of ``model`` and its base model on ``text``, and the KL between them.

    Args:
        model: a checkpoint of ours, or any base model.
        base: what to compare with; ``None`` takes the base model that a checkpoint names, if it names one.
        seed: draw windows by it; ``None`` takes the text's first ``tokens`` (how perplexity is reported).

    Returns:
        the base model's figures first, when there is one.

    Raises:
        ModelError, CalibrationError: what cannot be found or read.
    """
    import unicuco.models.hetero  # noqa: F401  (our checkpoints load without their own code)

    if base is None:
        base = _base_of(Path(model).expanduser())
    sources = [find_model(name) for name in (base, model) if name]
    windows = _windows(load_tokenizer(sources[-1], trust_remote_code), text, tokens, window_length, seed)
    results: list[Assessment] = []
    reference: tuple[torch.Tensor, Head] | None = None
    for source in sources:
        loaded = load_model(source, dtype, device, trust_remote_code)
        hidden, seconds = hidden_states(loaded, windows)
        head = Head(loaded)
        dense, dense_head = reference or (hidden, head)
        if dense_head.vocab_size != head.vocab_size:
            raise ModelError(f"{source.spec} and {sources[0].spec} have different vocabularies; no KL between them.")
        targets = torch.from_numpy(windows.tokens).long().roll(-1, dims=1)
        targets[:, -1] = -1
        targets = targets.flatten().to(head.device)
        with torch.inference_mode():
            found = compare(hidden, Reference(hidden=dense), targets, head, LOGITS_AT_ONCE, dense_head)
        first = reference is None
        results.append(
            Assessment(
                model=source.spec,
                parameters=sum(p.numel() for p in {id(p): p for p in loaded.parameters()}.values()),
                perplexity=float(found.loss[targets >= 0].mean().exp()),
                kl=None if first else float(found.forward.mean()),
                kl_reverse=None if first else float(found.reverse.mean()),
                tokens=windows.tokens.size,
                seconds=seconds,
            )
        )
        reference = (hidden, head)
        del loaded
    return results


def _base_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "unicuco.json").read_text(encoding="utf-8"))["base_model"]["spec"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _windows(tokenizer: Any, text: str, tokens: int, window_length: int, seed: int | None) -> Windows:
    domain = Domain.parse(text)
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
