"""Pruning as a slice: order a block's units once, permute the weights, and every width is a prefix.

All of it follows from one matrix per site, the Gram matrix H of the inputs of its output projection W (``o_proj`` or
``down_proj``), with ridge. Write H = L Lᵀ (lower Cholesky, units in their order), keep the first k units S, drop the
rest T:

- the least-squares compensated projection is  W' = W_S + W_T H_TS H_SS⁻¹ = W_S + (W_T L_TS) L_SS⁻¹,
- its residual is  W_T (H_TT − H_TS H_SS⁻¹ H_ST) W_Tᵀ = (W_T L_TT)(W_T L_TT)ᵀ,

and because L is lower triangular, column j of W_T L_TT does not depend on where the cut is. So one product M = V L,
V = ½-power of the output metric × W, gives the predicted damage of *every* width as a suffix sum of ‖M_j‖².
(Compensation: shared idea of OBS, SparseGPT, ZipLM; the suffix-sum form is ours.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge(gram: Tensor, strength: float) -> Tensor:
    """``gram`` (n x n) plus ``strength`` times its median diagonal: positive definite, float64.

    The median, because single neurons of some blocks fire a thousand times stronger than all others (massive
    activations): a ridge that follows the mean would drown the rest of the block, and its compensation with it.
    """
    gram = gram.double()
    diagonal = gram.diagonal()
    # Where most units are silent the median is nothing; a trace of the mean keeps the matrix positive definite.
    typical = torch.maximum(diagonal.median(), 1e-4 * diagonal.mean())
    typical = typical.clamp_min(torch.finfo(torch.float64).tiny)
    return gram + strength * typical * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def elimination_order(gram: Tensor, weight: Tensor, unit: int, step: int) -> Tensor:
    """Units from most to least important, by backward elimination with compensation (OBS on units).

    ``step`` units at a time: remove those whose loss, after re-solving for the rest, is least; re-solve; go on.

    Args:
        gram: n x n with ridge, float64.
        weight: d x n, rows already weighted by the square root of the output metric.
        unit: columns per unit (1 for a neuron; heads_per_group * head_dim for a KV group).

    Returns:
        ``n / unit`` unit indices.
    """
    n = gram.shape[0]
    num_units = n // unit
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weight = weight.double().clone()
    alive = torch.arange(num_units, device=gram.device)
    removed: list[Tensor] = []
    while len(alive) > 0:
        if len(alive) <= step:
            losses = _unit_losses(inverse, weight, unit)
            removed.append(alive[losses.argsort()])
            break
        losses = _unit_losses(inverse, weight, unit)
        ranking = losses.argsort()
        out, stay = ranking[:step], ranking[step:].sort().values
        removed.append(alive[out])
        out_columns, stay_columns = _columns(out, unit), _columns(stay, unit)
        block = inverse[out_columns][:, out_columns]
        cross = inverse[out_columns][:, stay_columns]
        solved = torch.linalg.solve(block, cross)
        weight = weight[:, stay_columns] - weight[:, out_columns] @ solved
        inverse = inverse[stay_columns][:, stay_columns] - cross.T @ solved
        alive = alive[stay]
    return torch.cat(removed).flip(0)


def _unit_losses(inverse: Tensor, weight: Tensor, unit: int) -> Tensor:
    if unit == 1:
        return weight.square().sum(0) / inverse.diagonal()
    units = weight.shape[1] // unit
    losses = []
    for u in range(units):
        columns = slice(u * unit, (u + 1) * unit)
        part = weight[:, columns]
        losses.append((part * torch.linalg.solve(inverse[columns, columns], part.T).T).sum())
    return torch.stack(losses)


def _columns(units: Tensor, unit: int) -> Tensor:
    if unit == 1:
        return units
    return (units[:, None] * unit + torch.arange(unit, device=units.device)).flatten()


def unit_columns(order: Tensor, unit: int) -> Tensor:
    """Column indices that bring units into ``order`` (``len(order) * unit``)."""
    return _columns(order, unit)


def column_damage(factor: Tensor, weight: Tensor) -> Tensor:
    """‖(V L)_j‖² for every column j: what dropping the tail from j on costs is the sum from j on (``n``).

    Args:
        factor: lower Cholesky factor of the ordered Gram matrix with ridge, n x n.
        weight: d x n ordered projection, rows weighted by the square root of the output metric.
    """
    return (weight.to(factor.dtype) @ factor).square().sum(0)


def compensated(factor: Tensor, weight: Tensor, kept: int) -> Tensor:
    """The projection re-solved for the first ``kept`` columns (d x kept), exactly ``weight`` when none is dropped.

    Costs d·kept·(n − kept) + d·kept²/2 multiply-adds: one product and one triangular solve.
    """
    if kept == weight.shape[1]:
        return weight
    head, tail = weight[:, :kept], weight[:, kept:]
    spill = tail.to(factor.dtype) @ factor[kept:, :kept]
    square = factor[
        :kept, :kept
    ].contiguous()  # a slice would be copied all the same, column by column, which is slower
    update = torch.linalg.solve_triangular(square, spill, upper=False, left=False)
    return head + update.to(head.dtype)
