"""Ordering the units of one site from its statistics, once, before it is sliced (unicuco/pruners/slices.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from unicuco.pruners.slices import column_damage, elimination_order, ridge, unit_columns
from unicuco.statistics import BlockStatistics


def order_site(
    found: BlockStatistics, kind: str, weight: Tensor, unit: int, step: int, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Order (units), Cholesky factor (n x n float32) and damage of dropping from unit u on (units + 1, descending)."""
    gram = ridge(found.grams[kind], strength)
    metric = found.metrics[kind].double()
    values, vectors = torch.linalg.eigh(metric)
    root = (values.clamp_min(0).sqrt()[:, None] * vectors.T).to(gram.device)
    weighted = root @ weight.double()
    order = elimination_order(gram, weighted, unit, step)
    columns = unit_columns(order, unit)
    factor = torch.linalg.cholesky(gram[columns][:, columns])
    per_unit = column_damage(factor, weighted[:, columns]).reshape(-1, unit).sum(1) / 2
    damage = torch.cat([per_unit.flip(0).cumsum(0).flip(0), per_unit.new_zeros(1)])
    return order.cpu(), factor.float().cpu().contiguous(), damage.cpu()
