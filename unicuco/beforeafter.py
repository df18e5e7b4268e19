"""What pruning did to a model on fresh text: KL from the dense model, and perplexity before and after."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unicuco.calibration import Windows
from unicuco.models.head import Head
from unicuco.reference import LOGITS_AT_ONCE, Reference, compare, next_tokens


def before_and_after(model: Any, dense: Tensor, pruned: Tensor, fresh: Windows) -> dict[str, float]:
    """Figures as a checkpoint's card names them, KL in nats per token.

    Args:
        model: its head is that of both.
        dense, pruned: last hidden states on ``fresh`` (``tokens x hidden``), before and after.
    """
    head = Head(model)
    pruned, dense = pruned.to(head.device), dense.to(head.device, pruned.dtype)
    targets = next_tokens(fresh.tokens).to(head.device)
    with torch.inference_mode():
        after = compare(pruned, Reference(hidden=dense), targets, head, LOGITS_AT_ONCE, head)
    return {
        "kl_heldout": float(after.forward.mean()),
        "perplexity_heldout": float(after.loss[targets >= 0].mean().exp()),
        "perplexity_heldout_dense": perplexity(head, dense, fresh),
        "tokens_heldout": int(fresh.tokens.size),
    }


@torch.inference_mode()
def perplexity(head: Head, hidden: Tensor, text: Windows) -> float:
    """exp of the mean −log p of every token but the first of each window.

    Args:
        hidden: last hidden states on ``text`` (``tokens x hidden``).
    """
    total, states = 0.0, hidden.to(head.device).view(*text.tokens.shape, -1)
    for row, state in zip(torch.from_numpy(text.tokens).long().to(head.device), states, strict=True):
        for i in range(0, len(row) - 1, LOGITS_AT_ONCE):
            targets = row[i + 1 : i + 1 + LOGITS_AT_ONCE]
            logits = head(state[i : i + len(targets)]).float()
            total += float(cross_entropy(logits, targets, reduction="sum"))
    return math.exp(total / (text.tokens.size - len(text.tokens)))
