"""What pruning did to a model on fresh text: KL from the dense model, and perplexity before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unicuco.calibration import Windows
from unicuco.models.head import Head
from unicuco.reference import LOGITS_AT_ONCE, Reference, compare


def before_and_after(model: Any, dense: Tensor, pruned: Tensor, fresh: Windows) -> dict[str, float]:
    """Figures as a checkpoint's card names them, nats per token.

    Args:
        model: its head is that of both.
        dense, pruned: last hidden states on ``fresh`` (``tokens x hidden``), before and after.
    """
    head, dense = Head(model), dense.to(pruned.dtype)
    targets = torch.from_numpy(fresh.tokens).long().roll(-1, dims=1)
    targets[:, -1] = -1
    targets = targets.flatten().to(pruned.device)
    with torch.inference_mode():
        after = compare(pruned, Reference(hidden=dense), targets, head, LOGITS_AT_ONCE, head)
        before = compare(dense, Reference(hidden=dense), targets, head, LOGITS_AT_ONCE)
    perplexity, perplexity_dense = (float(found.loss[targets >= 0].mean().exp()) for found in (after, before))
    return {
        "kl_heldout": float(after.forward.mean()),
        "perplexity_heldout": perplexity,
        "perplexity_heldout_dense": perplexity_dense,
        "tokens_heldout": int(fresh.tokens.size),
    }
