"""Random search: random strategies of the requested sizes; what everything else must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unicuco.baselines.measured import Measured, random_strategies, starts
from unicuco.baselines.oracle import BudgetSpentError, Oracle


def random_search(oracle: Oracle, sizes: Sequence[float], evaluations: float, rng: np.random.Generator) -> np.ndarray:
    """The best of both uniform forms and random strategies at each size.

    Strategies are drawn at the requested sizes in turn, not in between: each is then a full answer to one of them and
    serves the larger ones filled up.

    Args:
        sizes: shares of the blocks' parameters, each a bound.
        evaluations: how much of the oracle's budget may be used.

    Returns:
        ``len(sizes) x num_sites`` level indices.
    """
    kept = np.asarray(sizes, dtype=np.float64)
    measured = Measured(oracle, evaluations)
    try:
        for size in kept:
            for levels in starts(oracle.space, float(size)):
                measured.measure(levels)
        while measured.whole_left:
            for levels in random_strategies(oracle.space, kept, rng):
                measured.measure(levels)
    except BudgetSpentError:
        pass
    return measured.answers(kept)
