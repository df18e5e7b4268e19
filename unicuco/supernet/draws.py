"""Which sub-networks a step trains: drawn from bins of parameter counts, widths by disturbed damages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unicuco.allocation import allocate
from unicuco.space import SearchSpace, Shape, budgets_of
from unicuco.supernet.config import KEPT_HIGH, SupernetConfig


def draw_subnetworks(space: SearchSpace, damage: np.ndarray, config: SupernetConfig, step: int) -> np.ndarray:
    """The sub-networks of one step; ``step`` and the seed alone decide them.

    Args:
        damage: predicted damage of every level (``num_sites x max_levels``).

    Returns:
        ``subnetworks x num_sites`` level indices.
    """
    rounds: dict[int, np.ndarray] = {}
    bins = np.empty(config.subnetworks)
    for i in range(config.subnetworks):
        turn, place = divmod(step * config.subnetworks + i, config.bins)
        if turn not in rounds:
            rounds[turn] = np.random.default_rng([config.seed, 1, turn]).permutation(config.bins)
        bins[i] = rounds[turn][place]
    rng = np.random.default_rng([config.seed, 2, step])
    kept = config.kept_low + (KEPT_HIGH - config.kept_low) * (bins + rng.random(len(bins))) / config.bins
    factors = np.exp(config.spread * rng.standard_normal((len(bins), space.num_sites, 1)))
    return allocate(space, damage[None] * factors, budgets_of(space, kept))


def ladder_shapes(space: SearchSpace, damage: np.ndarray, sizes: Sequence[float]) -> list[Shape]:
    """The undisturbed sub-networks at ``sizes``, shares of the blocks' parameters."""
    return [space.shape(levels) for levels in allocate(space, damage, budgets_of(space, np.array(sizes)))]
