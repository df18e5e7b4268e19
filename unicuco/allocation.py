"""Sharing out a budget over sites when damages add up: a multiple-choice knapsack, solved by its Lagrangian.

Used by the search to turn any table of per-site damages into strategies of every size at once, in milliseconds.
"""

from __future__ import annotations

import numpy as np

from unicuco.space import SearchSpace


def allocate(
    space: SearchSpace,
    damage: np.ndarray,
    max_params: np.ndarray,
    steps: int = 40,
    prices: np.ndarray | None = None,
) -> np.ndarray:
    """Near-optimal strategies for additive damages, one per table and budget.

    Minimises Σ damage[site, level] subject to the parameter budget: bisection on the multiplier, then the rest of the
    budget is filled up by the best damage per parameter. Optimal on the convex hull of the budget axis; between two
    hull points within one level.

    Args:
        damage: ``num_sites x max_levels``, or one table per budget (``n x num_sites x max_levels``).
        max_params: ``n`` budgets, fixed parameters included; budgets below the smallest strategy give that one.
        prices: what levels cost where it is not their parameters, in the same unit (``n x num_sites x max_levels``;
            ``Costs.prices``).

    Returns:
        ``n x num_sites`` level indices.
    """
    budgets = np.atleast_1d(np.asarray(max_params, dtype=np.float64))
    cost = space.tables["params"].astype(np.float64) if prices is None else prices
    legal = np.arange(cost.shape[-1]) < space.num_levels[:, None]
    tables = np.broadcast_to(damage, (len(budgets), *space.levels.shape))
    tables = np.where(legal, tables, np.inf)
    scale = cost.max()
    low, high = np.full(len(budgets), -40.0), np.full(len(budgets), 20.0)  # log multiplier per (params / scale)

    def best(log_multiplier: np.ndarray) -> np.ndarray:
        return (tables + np.exp(log_multiplier)[:, None, None] * cost / scale).argmin(axis=2)

    for _ in range(steps):
        middle = (low + high) / 2
        fits = _total(space, best(middle), prices) <= budgets
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    return fill(space, best(high), tables, budgets, prices)


def _total(space: SearchSpace, index: np.ndarray, prices: np.ndarray | None) -> np.ndarray:
    if prices is None:
        return space.total(index)
    return np.take_along_axis(prices, index[..., None], axis=2)[..., 0].sum(axis=1) + space.fixed["params"]


def fill(
    space: SearchSpace,
    index: np.ndarray,
    tables: np.ndarray,
    budgets: np.ndarray,
    prices: np.ndarray | None = None,
) -> np.ndarray:
    """Gives levels back, best damage per parameter first, until no single site can move up within its budget.

    Args:
        index: ``n x num_sites`` levels, already within budget. tables: damages, broadcastable to
            ``n x num_sites x max_levels``. A jump over several levels counts as one move. prices: see ``allocate``.
    """
    sites = np.arange(space.num_sites)
    each = np.broadcast_to(
        space.tables["params"].astype(np.float64) if prices is None else prices, (len(index), *space.levels.shape)
    )
    tables = np.broadcast_to(tables, each.shape)
    rooms = budgets - _total(space, index, prices)
    index = index.copy()
    for row in range(len(index)):
        room, cost = rooms[row], each[row]
        while True:
            current = index[row]
            extra = cost - cost[sites, current][:, None]
            gain = tables[row][sites, current][:, None] - tables[row]
            movable = (np.arange(cost.shape[1]) < current[:, None]) & (extra <= room)
            if not movable.any():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(movable, gain / np.maximum(extra, 1), -np.inf)
            site, level = np.unravel_index(np.argmax(rate), rate.shape)
            room -= extra[site, level]
            index[row, site] = level
    return index
