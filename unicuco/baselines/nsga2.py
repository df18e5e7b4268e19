"""NSGA-II over (kept, log KL): the multi-objective search most often used for pruning (Deb et al. 2002), by pymoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unicuco.baselines.measured import Measured, random_strategies, starts
from unicuco.baselines.oracle import BudgetSpentError, Oracle
from unicuco.errors import UniCuCoError
from unicuco.space import SearchSpace, budgets_of
from unicuco.surrogate import NOISE_FLOOR

MARGIN = 0.02
"""How far outside the requested sizes strategies are still worth measuring."""


def nsga2(oracle: Oracle, sizes: Sequence[float], evaluations: float, rng: np.random.Generator) -> np.ndarray:
    """Strategies for all sizes from one run of NSGA-II on level indices.

    The population starts with both uniform forms at every size and random strategies in between. A child outside the
    range of the requested sizes is projected into it: unconstrained, most of the budget would go to the two ends.

    Args:
        sizes: shares of the blocks' parameters, each a bound.
        evaluations: how much of the oracle's budget may be used.

    Returns:
        ``len(sizes) x num_sites`` level indices: per size the best measured within it, filled up evenly.

    Raises:
        UniCuCoError: pymoo is not installed.
    """
    space, kept = oracle.space, np.asarray(sizes, dtype=np.float64)
    measured = Measured(oracle, evaluations)
    low, high = max(kept.min() - MARGIN, 0.0), min(kept.max() + MARGIN, 1.0)
    population = _population(measured.whole_left)
    first = [levels for size in kept for levels in starts(space, float(size))][:population]
    spread = np.linspace(low, high, max(population - len(first), 0))
    first += list(random_strategies(space, spread, rng))
    algorithm = _algorithm(space, np.array(first), int(rng.integers(2**31)))
    try:
        while measured.whole_left:
            children = algorithm.ask()
            if children is None or not len(children):
                break  # a small space is exhausted
            levels = _into_range(space, children.get("X"), low, high, rng)
            if all(measured.knows(row) for row in levels):
                break
            kl = np.array([measured.measure(row) for row in levels])
            children.set("X", levels)
            children.set("F", np.column_stack([space.kept(levels), np.log(np.maximum(kl, 0) + NOISE_FLOOR)]))
            algorithm.tell(infills=children)
    except BudgetSpentError:
        pass
    return measured.answers(kept)


def _population(evaluations: int) -> int:
    """Individuals: 22 x 14 generations for 300 evaluations, 14 x 4 for 60.

    On made-up damages of 12 and of 60 sites 22 did better than 30 with 300 evaluations (eight seeds); fewer than 14
    leave no room beside the uniform starts of five sizes.
    """
    return max(2 * round((1.5 * evaluations) ** 0.5 / 2), 14)


def _algorithm(space: SearchSpace, first: np.ndarray, seed: int) -> Any:
    """NSGA-II with crossover and mutation on integers, ``first`` (``n x num_sites``) as its first population."""
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
    except ImportError as error:
        raise UniCuCoError("NSGA-II needs pymoo: pip install 'unicuco[dev]', or pip install pymoo.") from error
    problem = Problem(n_var=space.num_sites, n_obj=2, xl=np.zeros(space.num_sites), xu=space.num_levels - 1, vtype=int)
    algorithm = NSGA2(
        pop_size=len(first),
        sampling=first,
        # Two sites mutate per child instead of pymoo's one: few generations have to cross many levels.
        crossover=SBX(prob=0.9, eta=10, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=0.9, prob_var=min(2 / space.num_sites, 0.5), eta=10, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
    return algorithm


def _into_range(
    space: SearchSpace, levels: np.ndarray, low: float, high: float, rng: np.random.Generator
) -> np.ndarray:
    """``levels`` (``n x num_sites``) with rows outside of [low, high] moved, all sites alike, to a size within."""
    levels = np.asarray(levels).round().astype(np.int64)
    size = space.kept(levels)
    outside = np.flatnonzero((size < low) | (size > high))
    if len(outside):
        wanted = budgets_of(space, rng.uniform(low, high, len(outside)))
        levels[outside] = space.project(space.sparsities(levels[outside]), {"params": wanted})
    return levels
