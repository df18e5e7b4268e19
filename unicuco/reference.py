"""The dense model's outputs on a set of windows: what every evaluation is compared with.

Either its full log-probabilities (fast: one pass over them per evaluation, float32, tokens x vocab), or where those do
not fit a budget, its last hidden states (tokens x hidden), from which the head is redone chunk by chunk. By
multiply-adds the head is a fifth of SmolLM2's forward; what keeping them saves has not been timed (docs/decisions.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unicuco.errors import PreparationError
from unicuco.storage import atomic_file

LOGITS_AT_ONCE = 256
"""Tokens per head product: enough to be bound by arithmetic, not by reading the head."""
POSITIONS_AT_ONCE = 32
"""Tokens per divergence: a float32 slice of the vocabulary that stays in a core's cache."""


@dataclass(frozen=True)
class Reference:
    """Dense outputs, in window order. Exactly one of the two is there.

    Attributes:
        log_probs: ``tokens x vocab`` float32.
        hidden: ``tokens x hidden``, in the evaluator's dtype.
    """

    log_probs: Tensor | None = None
    hidden: Tensor | None = None


@dataclass
class Divergence:
    """Sums over tokens, per token in float64: KL both ways and the loss of the next token (nats)."""

    forward: Tensor
    reverse: Tensor
    loss: Tensor


def log_probs_fit(tokens: int, vocab: int, budget_bytes: int) -> bool:
    """Whether float32 log-probabilities stay within ``budget_bytes``."""
    return tokens * vocab * 4 <= budget_bytes


def compute_log_probs(hidden: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-probabilities (``tokens x vocab`` float32) of hidden states, head in chunks."""
    parts = [logits(chunk).float().log_softmax(-1) for chunk in hidden.split(LOGITS_AT_ONCE)]
    return torch.cat(parts)


def next_tokens(tokens: np.ndarray) -> Tensor:
    """The token after each position (``num_windows * window_length``); -1 at the end of a window, where none is known.

    Args:
        tokens: ``num_windows x window_length``.
    """
    found = torch.from_numpy(tokens).long().roll(-1, dims=1)
    found[:, -1] = -1
    return found.flatten()


def compare(
    hidden: Tensor,
    reference: Reference,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    chunk: int,
    dense_logits: Callable[[Tensor], Tensor] | None = None,
) -> Divergence:
    """Compares a model's hidden states with the reference over the full vocabulary.

    Args:
        hidden: ``tokens x hidden`` of the model under evaluation.
        targets: next token of each position, -1 where there is none.
        logits: the head.
        chunk: tokens per head product.
        dense_logits: the reference's head, where it is another one.
    """
    dense_logits = dense_logits or logits
    forward, reverse, loss = [], [], []
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        scores = logits(hidden[rows])
        # Two heads of models on several devices may lie on different ones.
        dense_scores = None if reference.hidden is None else dense_logits(reference.hidden[rows]).to(scores.device)
        step = POSITIONS_AT_ONCE if scores.device.type == "cpu" else chunk
        for i in range(0, len(scores), step):
            log_q = scores[i : i + step].float().log_softmax(-1)
            if reference.log_probs is not None:
                log_p = reference.log_probs[start + i : start + i + len(log_q)]
            else:
                assert dense_scores is not None
                log_p = dense_scores[i : i + step].float().log_softmax(-1)
            target = targets[start + i : start + i + len(log_q)]
            loss.append(-log_q.gather(-1, target.clamp_min(0)[:, None])[:, 0].double())
            gap = log_p - log_q
            forward.append(_dot(log_p.exp(), gap))
            reverse.append(-_dot(log_q.exp_(), gap))
    return Divergence(torch.cat(forward), torch.cat(reverse), torch.cat(loss))


def _dot(weights: Tensor, values: Tensor) -> Tensor:
    """Row by row Σ weights·values (``rows``, float64)."""
    if weights.device.type == "cpu":  # without a temporary the size of both
        return torch.bmm(weights[:, None], values[:, :, None])[:, 0, 0].double()
    # There, a batch of products of one row and one column takes twelve times as long.
    return torch.linalg.vecdot(weights, values).double()


def load_or_compute(path: Path, compute: Callable[[], Reference]) -> Reference:
    """The reference at ``path``, memory-mapped; computed and written there first if it is missing.

    Raises:
        PreparationError: the file is broken. DiskFullError: nothing was left behind.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        if not path.is_file():
            reference = compute()
            tensors = {k: v.cpu() for k, v in vars(reference).items() if v is not None}
            with atomic_file(path) as scratch:
                save_file(tensors, scratch)
    try:
        return Reference(**load_file(os.fspath(path)))
    except (OSError, SafetensorError, TypeError) as error:
        raise PreparationError(
            f"The dense reference at {path} is broken; delete it to build it anew: {error}"
        ) from error
