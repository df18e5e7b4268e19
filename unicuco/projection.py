"""From wishes to legal strategies: the nearest levels, and the nearest strategy within a budget.

Every answer to a request passes through here, so what depends on the space alone is worked out once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

M = TypeVar("M", bound=str)


class Projection(Generic[M]):
    """Of one space onto its legal strategies.

    Args:
        levels: sparsity of each level, ascending (``num_sites x max_levels``, padded on the right).
        num_levels: levels per site (``num_sites``).
        tables: for each measure, what a site costs at each level (``num_sites x max_levels``, the last one repeated).
    """

    def __init__(self, levels: np.ndarray, num_levels: np.ndarray, tables: Mapping[M, np.ndarray]) -> None:
        self._levels, self._tables = levels, tables
        self._sites = np.arange(len(levels))
        self._offset = 2.0 * self._sites  # sets the sites apart on one axis
        before = [np.arange(1, n) for n in num_levels]  # every step from a level to the next
        self._step_site, self._step_level = np.repeat(self._sites, num_levels - 1), np.concatenate(before)
        self._first_step = np.concatenate([[0], np.cumsum(num_levels - 1)[:-1]])
        higher, lower = levels[self._step_site, self._step_level], levels[self._step_site, self._step_level - 1]
        self._midpoint = (higher + lower) / 2
        self._on_axis = self._midpoint + self._offset[self._step_site]
        # What a level costs less than the one before it; the first: nothing.
        self._frees = {m: -np.diff(table, axis=1, prepend=table[:, :1]) for m, table in tables.items()}
        self._dense = {m: int(table[:, 0].sum()) for m, table in tables.items()}

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Level indices for sparsities in any range (``n x num_sites``): one binary search; a tie keeps more."""
        place = np.minimum(np.maximum(x, 0.0), 1.0) + self._offset
        return np.searchsorted(self._on_axis, place, side="left") - self._first_step

    def within(self, x: np.ndarray, limits: Mapping[M, np.ndarray]) -> np.ndarray:
        """The legal strategies nearest to ``x`` that fit every limit.

        All sparsities of a row are shifted together until the snapped strategy fits, then levels are given back one by
        one, to the site most over-pruned for its wish, until no single level fits any more.

        Args:
            x: ``n x num_sites`` sparsities in [0, 1].
            limits: per measure, the largest total of the sites (``n``), not below that of their last levels.

        Returns:
            ``n x num_sites`` level indices, never over any limit, within one level of it.
        """
        return self._fill(self.nearest(x + self._shift(x, limits)[:, None]), x, limits)

    def _shift(self, x: np.ndarray, limits: Mapping[M, np.ndarray]) -> np.ndarray:
        """The smallest shift of every row (``n``) with which its nearest levels fit: all shifts that matter, in order.

        A site comes to its next level where its sparsity passes the midpoint, and gives up the difference there.
        """
        passes = self._midpoint - x.take(self._step_site, axis=1)
        # In single precision, which sorts faster: what is nearer together than that is within the slack below.
        order = passes.astype(np.float32).argsort(axis=1)
        rows = np.arange(len(x))
        shift = np.full(len(x), -2.0)  # all dense
        for measure, limit in limits.items():
            over = self._dense[measure] - limit
            freed = self._step_frees[measure].take(order).cumsum(axis=1)
            last = np.minimum((freed < over[:, None]).sum(axis=1), order.shape[1] - 1)
            needed = passes[rows, order[rows, last]] + 1e-6  # levels lie further apart
            shift = np.where(over > 0, np.maximum(shift, needed), shift)
        return shift

    @cached_property
    def _step_frees(self) -> dict[M, np.ndarray]:
        return {m: frees[self._step_site, self._step_level] for m, frees in self._frees.items()}

    def _fill(self, index: np.ndarray, wish: np.ndarray, limits: Mapping[M, np.ndarray]) -> np.ndarray:
        """Gives levels back, one at a time, while one fits."""
        sites, rows = self._sites, np.arange(len(index))
        left = {m: limit - self._tables[m][sites, index].sum(axis=1) for m, limit in limits.items()}
        while len(rows):
            current = index[rows]
            possible = current > 0
            for measure, room in left.items():
                possible &= self._frees[measure][sites, current] <= room[:, None]
            gap = np.where(possible, self._levels[sites, current] - wish[rows], -np.inf)
            best = gap.argmax(axis=1)
            moved = gap[np.arange(len(rows)), best] > -np.inf
            rows, best = rows[moved], best[moved]
            for measure, room in left.items():
                left[measure] = room[moved] - self._frees[measure][best, index[rows, best]]
            index[rows, best] -= 1
        return index
