"""Distillation from the dense model's whole distribution, some of it replaced by the text's own next token.

Per position with target distribution t = (1 - w) p + w y, p the dense model's softmax and y the next token, the loss
is (1 - w) KL(p || q) - w log q(y) (Hinton et al. 2015, arXiv 1503.02531, at temperature 1), and its gradient by the
logits is q - t. The head and both softmaxes are redone in chunks, so no tensor of tokens x vocabulary is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unicuco.models.head import Head
from unicuco.reference import LOGITS_AT_ONCE, POSITIONS_AT_ONCE


@dataclass
class Losses:
    """Means over a step's tokens, nats: what is minimised, and its two parts; ``kl`` is NaN where only text counts."""

    total: float
    kl: float
    text: float


class _Distilled(torch.autograd.Function):
    """The gradient by the hidden states is computed together with the loss: both need the same logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None


def distil(
    hidden: Tensor, dense: Tensor | None, targets: Tensor, head: Head, dense_head: Head, text_weight: float
) -> tuple[Tensor, Losses]:
    """The loss (a scalar that gradients flow from into ``hidden``), and its parts.

    Args:
        hidden, dense: last hidden states of both models (``tokens x hidden``). ``dense`` is ``None`` where the text
            alone counts (``text_weight`` 1).
        targets: next token of each position (``tokens``), -1 where there is none: there, the dense model alone counts,
            and without one nothing.
    """
    gradient = torch.empty_like(hidden)
    kl = torch.zeros((), dtype=torch.float64, device=hidden.device)
    text = torch.zeros_like(kl)
    total = torch.zeros_like(kl)
    for start in range(0, len(hidden), LOGITS_AT_ONCE):
        rows = slice(start, start + LOGITS_AT_ONCE)
        inputs = hidden[rows].detach().requires_grad_()
        with torch.enable_grad():
            logits = head(inputs)
        with torch.no_grad():
            dense_logits = None if dense is None else dense_head(dense[rows])
            of_logits = torch.empty_like(logits)
            step = POSITIONS_AT_ONCE if logits.device.type == "cpu" else LOGITS_AT_ONCE
            for i in range(0, len(logits), step):
                part = slice(i, i + step)
                target = targets[rows][part]
                log_q = logits[part].float().log_softmax(-1)
                known = target >= 0
                at_target = log_q.gather(-1, target.clamp_min(0)[:, None])[:, 0]
                if dense_logits is None:
                    text -= at_target[known].double().sum()
                    wanted = log_q.exp_()
                    wanted.scatter_add_(-1, target.clamp_min(0)[:, None], -known[:, None].to(wanted.dtype))
                    of_logits[part] = wanted.mul_(known[:, None])
                    continue
                weight = torch.where(known, text_weight, 0.0)
                log_p = dense_logits[part].float().log_softmax(-1)
                p = log_p.exp()
                kls = torch.linalg.vecdot(p, log_p.sub_(log_q))
                kl += kls.double().sum()
                text -= at_target[known].double().sum()
                total += ((1 - weight) * kls - weight * at_target).double().sum()
                wanted = log_q.exp_().sub_(p.mul_((1 - weight)[:, None]))
                wanted.scatter_add_(-1, target.clamp_min(0)[:, None], -weight[:, None])
                of_logits[part] = wanted
        logits.backward(of_logits)
        assert inputs.grad is not None
        gradient[rows] = inputs.grad
    count = len(hidden)
    if dense is None:
        total, kl = text.clone(), torch.full_like(kl, torch.nan)
    loss = (total / count).to(torch.float32)
    losses = Losses(float(loss), float(kl) / count, float(text) / max(int((targets >= 0).sum()), 1))
    return _Distilled.apply(hidden, loss, gradient / count), losses
