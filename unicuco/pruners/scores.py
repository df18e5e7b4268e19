"""Pruners that score weights and change none of those that stay: magnitude, and Wanda (Sun et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from unicuco.pruners.masks import Pattern, lowest, lowest_of_groups, lowest_of_rows


def magnitude(weight: Tensor, sparsity: float, pattern: Pattern | None = None) -> Tensor:
    """Without the smallest weights of the whole matrix (``rows x columns``), or of each group of a ``pattern``."""
    scores = weight.abs()
    count = round(sparsity * weight.numel())
    return weight.masked_fill(lowest_of_groups(scores, pattern) if pattern else lowest(scores, count), 0)


def wanda(weight: Tensor, energy: Tensor, sparsity: float, pattern: Pattern | None = None) -> Tensor:
    """Without the weights of least |w| · ‖x‖ of every row, or of each group of a ``pattern``.

    Args:
        weight: ``rows x columns``.
        energy: sum or mean of the squares of every input (``columns``).
    """
    scores = weight.abs().to(energy.dtype) * energy.sqrt()
    count = round(sparsity * weight.shape[1])
    return weight.masked_fill(lowest_of_groups(scores, pattern) if pattern else lowest_of_rows(scores, count), 0)
