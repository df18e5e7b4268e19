"""Slopes of log KL that margins measured, as the surrogate learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unicuco.evaluations import Evaluation
from unicuco.space import SearchSpace

STEP = 0.08
"""Sparsity between a strategy's level and the neighbours that a slope is taken over; at least one level."""


@dataclass(frozen=True)
class Slopes:
    """Differences of log KL between two strategies that differ in one site, on both sides of a third.

    Attributes:
        x_up, x_down, x_base: sparsities (``n x num_sites``); ``x_up`` prunes more than ``x_base``, ``x_down`` less.
        rise: log KL(x_up) − log KL(x_down), to first order around ``x_base`` (``n``).
        group: slopes of one base and one kind of site have the same number (``n``): they share an unknown scale.
        windows: the margin windows that each was measured on (``n``).
    """

    x_up: Tensor
    x_down: Tensor
    x_base: Tensor
    rise: Tensor
    group: Tensor
    windows: Tensor

    @property
    def site(self) -> Tensor:
        """The site that each slope is about (``n``)."""
        return (self.x_up != self.x_down).int().argmax(-1)

    def __len__(self) -> int:
        return len(self.rise)


def read_slopes(space: SearchSpace, evaluations: Sequence[Evaluation]) -> Slopes:
    """Slopes of every site that could be pruned both more and less, from all evaluations with margins.

    A site that is dense or dropped has one direction only. Its margin then says what the other sites do to it and
    nothing of its own weight, so it gets no slope.
    """
    up: list[np.ndarray] = []
    down: list[np.ndarray] = []
    base: list[np.ndarray] = []
    rise: list[float] = []
    group: list[int] = []
    windows: list[int] = []
    kinds = sorted({site.kind for site in space.sites})
    for number, evaluation in enumerate(evaluations):
        if not evaluation.margins or not evaluation.margins_kl > 0:
            continue
        levels = evaluation.levels_array()
        change = np.asarray(evaluation.margins, dtype=np.float64).reshape(space.levels.shape)
        sparsity = space.sparsities(levels)
        for site in np.flatnonzero((levels > 0) & (levels < space.num_levels - 1)):
            legal = space.levels[site, : space.num_levels[site]]
            more = min(int(np.searchsorted(legal, legal[levels[site]] + STEP)), len(legal) - 1)
            less = max(int(np.searchsorted(legal, legal[levels[site]] - STEP, side="right")) - 1, 0)
            for rows, level in ((up, more), (down, less)):
                moved = sparsity.copy()
                moved[site] = legal[level]
                rows.append(moved)
            base.append(sparsity)
            group.append(number * len(kinds) + kinds.index(space.sites[site].kind))
            windows.append(evaluation.margin_group)
            rise.append((change[site, more] - change[site, less]) / evaluation.margins_kl)
    shape = (len(rise), space.num_sites)
    return Slopes(
        torch.as_tensor(np.array(up).reshape(shape)),
        torch.as_tensor(np.array(down).reshape(shape)),
        torch.as_tensor(np.array(base).reshape(shape)),
        torch.as_tensor(np.array(rise, dtype=np.float64)),
        torch.as_tensor(np.array(group, dtype=np.int64)),
        torch.as_tensor(np.array(windows, dtype=np.int64)),
    )
