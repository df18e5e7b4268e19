"""Spaces of few decisions: what is proposed where every site is kept or dropped, beside allocations.

Damages of dropped blocks do not add up: two in a row cost more than both alone, or less. An allocation under additive
damages, even drawn ones, cannot say which pairs; what was measured can. So the search also looks around the best
strategy of every size, at all that differ from it in one site or in one swap, with the surrogate to judge. (Ours;
measured in docs/decisions.md.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unicuco.evaluations import Evaluation
from unicuco.objectives import front
from unicuco.proposals import Proposal, strategy_key
from unicuco.space import SearchSpace
from unicuco.surrogate import Surrogate

PER_SIZE = 8
"""Neighbours proposed of each size, a size being one block's share of the parameters."""
MOST = 8192
"""Neighbours that are judged; where there are more, so many drawn at random."""


def neighbours(
    space: SearchSpace,
    surrogate: Surrogate,
    done: Sequence[Evaluation],
    kept_low: float,
    optimism: float,
    taken: set[bytes],
    generator: torch.Generator,
) -> list[Proposal]:
    """The most promising strategies near the measured front, none of them in ``taken``.

    None at all where sites have more levels, or for the paper's plain surrogate.

    Args:
        optimism: β of μ − βσ, by which they are judged.
    """
    if not space.is_binary or surrogate.damage_model is None:
        return []
    levels, kl = np.array([e.levels_array() for e in done]), np.array([e.kl for e in done])
    # The dense model is nobody's rival: its neighbours are what every search begins with.
    useful = np.flatnonzero(np.isfinite(kl) & (kl > 0) & (space.kept(levels) >= kept_low - 0.02) & levels.any(axis=1))
    best = useful[front(np.column_stack([space.kept(levels[useful]), kl[useful]]))]
    near = around(levels[best])
    near = near[(space.kept(near) >= kept_low - 0.01) & near.any(axis=1)]
    near = np.array([row for row in near if strategy_key(row) not in taken], dtype=np.int64)
    if len(near) > MOST:
        near = near[torch.randperm(len(near), generator=generator)[:MOST].numpy()]
    if not len(near):
        return []
    with torch.no_grad():
        mean, deviation = surrogate.predict(torch.as_tensor(space.sparsities(near)))
    score = (mean - optimism * deviation).numpy()
    size = np.round(space.kept(near) * len(space.geometry.blocks))
    chosen = [int(i) for value in np.unique(size) for i in _lowest(np.flatnonzero(size == value), score)]
    return [(near[i], "neighbour") for i in chosen]


def around(levels: np.ndarray) -> np.ndarray:
    """All that differ from a row of ``levels`` (``n x num_sites``, 0 or 1) in one site, or in one swap; once each."""
    flip = np.eye(levels.shape[1], dtype=np.int64)
    found = []
    for row in levels:
        dropped, kept = np.flatnonzero(row), np.flatnonzero(row == 0)
        swaps = row ^ (flip[dropped][:, None] | flip[kept][None])
        found += [row ^ flip, swaps.reshape(-1, len(row))]
    return np.unique(np.concatenate(found), axis=0) if found else np.empty_like(levels)


def _lowest(members: np.ndarray, score: np.ndarray) -> np.ndarray:
    return members[np.argsort(score[members], kind="stable")[:PER_SIZE]]
