"""Puzzletron's search: every level of every site scored once, then one exact program answers all sizes.

Bercovich et al. 2024, "Puzzle: Distillation-Based NAS for Inference-Optimized LLMs" (arXiv 2411.19146):
replace-one-block scores by KL from the dense model, then a mixed-integer program per budget. With one constraint that
program is a multiple-choice knapsack, which dynamic programming solves for every budget in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unicuco.allocation import fill
from unicuco.baselines.measured import Measured
from unicuco.baselines.oracle import BudgetSpentError, Oracle
from unicuco.errors import InfeasibleRequestError
from unicuco.space import SearchSpace, budgets_of

MAX_GRID = 1 << 19
"""Most budgets that the program tabulates; a finer exact grid is replaced by this one, costs rounded up."""


def knapsack(oracle: Oracle, sizes: Sequence[float], evaluations: float, rng: np.random.Generator) -> np.ndarray:
    """Strategies for all sizes from one table of replacement scores.

    Args:
        sizes: shares of the blocks' parameters, each a bound.
        evaluations: how much of the oracle's budget may be used; what a full table leaves over stays unused.
        rng: chooses who is measured once more where the budget does not divide evenly.

    Returns:
        ``len(sizes) x num_sites`` level indices.
    """
    space = oracle.space
    budgets = budgets_of(space, np.asarray(sizes, dtype=np.float64))
    damage = replacement_scores(oracle, evaluations, rng)
    # The program leaves room only where a level costs nothing or where costs were rounded.
    return fill(space, solve_all(space, damage, budgets), damage, budgets)


def replacement_scores(oracle: Oracle, evaluations: float, rng: np.random.Generator) -> np.ndarray:
    """KL with one site at one level and all others dense (``num_sites x max_levels``).

    What the budget cannot measure is interpolated in √KL, linearly in sparsity: near the dense model KL is quadratic
    in the change of the weights, so √KL is close to a line through 0, and between two measured levels stays monotone.
    """
    space, measured = oracle.space, Measured(oracle, evaluations)
    scores: list[dict[int, float]] = [{} for _ in range(space.num_sites)]
    try:
        for site, level in _plan(space, measured.whole_left, rng):
            levels = np.zeros(space.num_sites, dtype=np.int64)
            levels[site] = level
            scores[site][level] = measured.measure(levels)
    except BudgetSpentError:
        pass
    return _complete(space, scores)


def _plan(space: SearchSpace, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(site, level) of up to ``count`` measurements, alike many per site, the dropped level of each first.

    A site's levels are an even subset that ends with the dropped one: no score is extrapolated.
    """
    most = space.num_levels - 1
    share = np.zeros(space.num_sites, dtype=np.int64)
    if count < space.num_sites:
        # Evenly over the depth: an unmeasured site borrows from the nearest one of its kind.
        for kind in sorted({site.kind for site in space.sites}):
            members = np.array([i for i, site in enumerate(space.sites) if site.kind == kind])
            chosen = count * len(members) // space.num_sites
            share[members[np.linspace(0, len(members) - 1, chosen).round().astype(int)]] = 1
        share[rng.permutation(np.flatnonzero(share == 0))[: count - share.sum()]] = 1
        share = np.minimum(share, most)  # a site with one level has nothing to be replaced by
    else:
        while (share < most).any() and share.sum() < count:
            behind = np.flatnonzero((share < most) & (share == share[share < most].min()))
            share[rng.permutation(behind)[: count - share.sum()]] += 1
    plan = [
        (site, int(level))
        for site in range(space.num_sites)
        for level in np.linspace(most[site], 0, share[site], endpoint=False).round()
    ]
    return sorted(plan, key=lambda pair: pair[1] < most[pair[0]])[:count]


def _complete(space: SearchSpace, scores: list[dict[int, float]]) -> np.ndarray:
    """The whole table from what was measured of it (``num_sites x max_levels``)."""
    known = [site for site, found in enumerate(scores) if found]
    table = np.zeros(space.levels.shape)
    for i, site in enumerate(space.sites):
        alike = [k for k in known if space.sites[k].kind == site.kind]
        source = min(alike, key=lambda k: abs(k - i)) if alike else None
        sparsity = np.asarray(site.sparsity)
        if source is None:  # nothing measured of this kind: damage as the parameters go
            table[i, : len(sparsity)] = sparsity**2 * space.tables["params"][i, 0] / space.tables["params"].max()
            continue
        levels = sorted(scores[source])
        at = [0.0, *(space.sites[source].sparsity[level] for level in levels)]
        roots = [0.0, *(math.sqrt(max(scores[source][level], 0.0)) for level in levels)]
        table[i, : len(sparsity)] = np.interp(sparsity, at, roots) ** 2
        if source == i:  # as measured, untouched by rounding
            table[i, levels] = [max(scores[i][level], 0.0) for level in levels]
    return table


def solve_all(space: SearchSpace, damage: np.ndarray, budgets: np.ndarray, max_grid: int = MAX_GRID) -> np.ndarray:
    """The strategies of least additive damage, one per parameter budget, from one dynamic program.

    Exact when the largest budget is at most ``max_grid`` times the greatest common divisor of all costs; else costs
    are rounded up to a grid of ``max_grid`` steps, so that no answer is over its budget.

    Args:
        damage: ``num_sites x max_levels``; columns past a site's last level are ignored.
        budgets: ``n`` budgets, fixed parameters included.

    Returns:
        ``n x num_sites`` level indices.

    Raises:
        InfeasibleRequestError: a budget is below the smallest strategy.
    """
    smallest = space.total(space.smallest)
    budgets = np.atleast_1d(np.asarray(budgets, dtype=np.float64))
    if (budgets < smallest).any():
        raise InfeasibleRequestError(
            f"No strategy has {int(budgets.min()):,} parameters: in the smallest {int(smallest):,} are left."
        )
    cost = space.tables["params"] - space.tables["params"].min(axis=1, keepdims=True)
    room = np.minimum(np.floor(budgets - smallest), cost.max(axis=1).sum()).astype(np.int64)
    unit = max(int(np.gcd.reduce(cost, axis=None)), -(-int(room.max()) // max_grid), 1)
    steps, ends = -(-cost // unit), room // unit
    # least[c]: smallest damage of the sites so far at a cost of c steps or less.
    least = np.zeros(int(ends.max()) + 1)
    choices = np.zeros((space.num_sites, len(least)), dtype=np.min_scalar_type(int(space.num_levels.max())))
    for site in range(space.num_sites):
        best = np.full(len(least), np.inf)
        for level in range(space.num_levels[site]):
            first = int(steps[site, level])
            if first >= len(least):
                continue
            offer = least[: len(least) - first] + damage[site, level]
            better = offer < best[first:]
            best[first:][better] = offer[better]
            choices[site, first:][better] = level
        least = best
    levels = np.zeros((len(budgets), space.num_sites), dtype=np.int64)
    at = ends.copy()
    for site in reversed(range(space.num_sites)):
        levels[:, site] = choices[site, at]
        at -= steps[site, levels[:, site]]
    return levels
