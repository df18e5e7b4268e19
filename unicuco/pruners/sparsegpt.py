"""SparseGPT (Frantar & Alistarh 2023): prune a matrix column by column, and let the columns to come make up for it.

For inputs with Gram matrix H = Σ x xᵀ, damped, let U be the upper Cholesky factor of H⁻¹ (H⁻¹ = Uᵀ U). Removing w_j
costs w_j² / U_jj² given that all columns before j are settled; the best correction of the columns after it is
−(w_j / U_jj) · U_j,>j.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unicuco.errors import StrategyError
from unicuco.pruners.masks import Pattern, lowest, lowest_of_rows

BLOCK = 128
"""Columns for which a mask is chosen at once (a whole number of N:M groups), and between two large updates."""
DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal."""


def inverse_factor(gram: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factor of the inverse of a damped Gram matrix, in float64, and which inputs are always zero.

    H = R Rᵀ with R upper triangular is a Cholesky factorisation with rows and columns in reverse; then U = R⁻¹: one
    factorisation and one triangular inverse, in the place of two factorisations and a full inverse.

    Args:
        gram: ``n x n``.

    Returns:
        U (``n x n``) and a mask of silent inputs (``n``).
    """
    gram = gram.double().clone()
    diagonal = gram.diagonal()
    silent = diagonal == 0
    diagonal += damping * diagonal.mean() + silent.double()
    reverse = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(reverse, identity, upper=True), silent


def sparsegpt(
    weights: Sequence[Tensor],
    factor: Tensor,
    silent: Tensor,
    sparsity: float | Sequence[float],
    pattern: Pattern | None = None,
) -> list[Tensor]:
    """Prunes matrices that read the same inputs, in one sweep over their columns.

    Args:
        weights: ``rows x n`` each; not changed.
        factor, silent: of ``inverse_factor``. The sweep runs in the weights' dtype, float32 at least.
        sparsity: share of the weights to remove, of each matrix or of all; with a ``pattern``, which fixes it, unused.

    Returns:
        the pruned matrices, with corrections, in the dtypes they came in.

    Raises:
        StrategyError: the columns do not divide into the pattern's groups.
    """
    rows = [len(weight) for weight in weights]
    shares = [float(sparsity)] * len(rows) if isinstance(sparsity, (int, float)) else list(sparsity)
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    factor = factor.to(dtype)
    # Transposed: a column of the matrices is then one run of memory.
    left = torch.cat([weight.T for weight in weights], dim=1).to(dtype)
    columns = len(left)
    if pattern and columns % pattern.m:
        raise StrategyError(f"A matrix with {columns} columns does not divide into groups of {pattern.m} ({pattern}).")
    left[silent] = 0
    step = BLOCK if pattern is None else BLOCK - BLOCK % pattern.m or pattern.m
    for begin in range(0, columns, step):
        end = min(begin + step, columns)
        own, corner = left[begin:end], factor[begin:end, begin:end]
        errors = torch.empty_like(own)
        removed = None if pattern else _chosen(own, corner.diagonal(), rows, shares, begin, end)
        for i in range(end - begin):
            if pattern and i % pattern.m == 0:
                ahead = slice(i, i + pattern.m)
                scores = (own[ahead] / corner.diagonal()[ahead, None]).square()
                group = lowest_of_rows(scores.T, pattern.m - pattern.n).T
            gone = group[i % pattern.m] if pattern else removed[i]  # type: ignore[index]
            error = torch.where(gone, own[i] / corner[i, i], 0)
            own[i:].addr_(corner[i, i:], error, alpha=-1)
            own[i].masked_fill_(gone, 0)  # exactly
            errors[i] = error
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return [part.T.contiguous().to(w.dtype) for part, w in zip(left.split(rows, dim=1), weights, strict=True)]


def _chosen(own: Tensor, diagonal: Tensor, rows: list[int], shares: list[float], begin: int, end: int) -> Tensor:
    """What goes of a block of columns (``columns x all rows``): of each matrix its share, exact over all blocks."""
    scores = (own / diagonal[:, None]).square()
    parts = []
    for part, count, share in zip(scores.split(rows, dim=1), rows, shares, strict=True):
        parts.append(lowest(part.T, round(share * count * end) - round(share * count * begin)).T)
    return torch.cat(parts, dim=1)
