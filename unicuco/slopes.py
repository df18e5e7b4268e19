"""Slopes of log KL that margins measured, as the surrogate learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unicuco.damage import DamageModel
from unicuco.evaluations import Evaluation
from unicuco.space import SearchSpace

STEP = 0.08
"""Sparsity between a strategy's level and the neighbours that a slope is taken over; at least one level."""
ALIKE = 0.05
"""Slopes of one site around strategies whose kept shares are this near are averaged."""
WINDOW_LUCK = 0.35
"""How far a site's weight on one draw of windows is from its weight on all text, in logs (``benchmarks.margins``)."""
OWN_ERROR, FLOOR = 0.15, 0.002
"""What a slope may be off by on its own: a share of what the damages promise, and at least this much in log KL."""
KIND_ERROR, SCALE_ERROR, SITE_ERROR = 0.2, 0.3, 0.15
"""What slopes may be off by together, as shares: all of one kind of site, those of one base and kind, of one site."""
BEND_ERROR = 0.6
"""Share of the second-order terms that they may be off by: a large step is not a slope."""


@dataclass(frozen=True)
class Slopes:
    """Differences of log KL between two strategies that differ in one site, on both sides of a third.

    Attributes:
        x_up, x_down, x_base: sparsities (``n x num_sites``); ``x_up`` prunes more than ``x_base``, ``x_down`` less.
        rise: log KL(x_up) − log KL(x_down), to first order around ``x_base`` (``n``).
    """

    x_up: Tensor
    x_down: Tensor
    x_base: Tensor
    rise: Tensor

    @property
    def site(self) -> Tensor:
        """The site that each slope is about (``n``)."""
        return (self.x_up != self.x_down).int().argmax(-1)

    def __len__(self) -> int:
        return len(self.rise)


@dataclass(frozen=True)
class SlopeData:
    """Slopes as data of the surrogate: a row for each site and size, the mean over the bases of about that size.

    A mean of slopes is as linear in the sites' log weights as one slope, so nothing is approximated but that their
    weights are the same; and a run of thousands of slopes has no more rows than sites times sizes.

    Attributes:
        steps: how each row pulls at the sites' log weights (``num_rows x num_sites``).
        kept: share of the blocks' parameters around which it was measured (``num_rows``).
        gap: measured, second-order terms added, less what the mean promises with weights at their prior (``num_rows``).
        error: covariance of what they may be off by (``num_rows x num_rows``).
    """

    steps: Tensor
    kept: Tensor
    gap: Tensor
    error: Tensor


def read_slopes(space: SearchSpace, evaluations: Sequence[Evaluation]) -> Slopes:
    """Slopes of every site that could be pruned both more and less, from all evaluations with margins.

    A site that is dense or dropped has one direction only. Its margin then says what the other sites do to it and
    nothing of its own weight, so it gets no slope.
    """
    up: list[np.ndarray] = []
    down: list[np.ndarray] = []
    base: list[np.ndarray] = []
    rise: list[float] = []
    for evaluation in evaluations:
        if not evaluation.margins or not evaluation.margins_kl > 0:
            continue
        levels = evaluation.levels_array()
        change = np.asarray(evaluation.margins, dtype=np.float64).reshape(space.levels.shape)
        sparsity = space.sparsities(levels)
        for site, (less, more) in steps(space, levels).items():
            for rows, level in ((up, more), (down, less)):
                moved = sparsity.copy()
                moved[site] = space.levels[site, level]
                rows.append(moved)
            base.append(sparsity)
            rise.append((change[site, more] - change[site, less]) / evaluation.margins_kl)
    shape = (len(rise), space.num_sites)
    return Slopes(
        torch.as_tensor(np.array(up).reshape(shape)),
        torch.as_tensor(np.array(down).reshape(shape)),
        torch.as_tensor(np.array(base).reshape(shape)),
        torch.as_tensor(np.array(rise, dtype=np.float64)),
    )


def steps(space: SearchSpace, levels: np.ndarray) -> dict[int, tuple[int, int]]:
    """The levels below and above its own between which each site's slope is taken, for sites that have both."""
    found = {}
    for site in np.flatnonzero((levels > 0) & (levels < space.num_levels - 1)):
        legal = space.levels[site, : space.num_levels[site]]
        more = min(int(np.searchsorted(legal, legal[levels[site]] + STEP)), len(legal) - 1)
        less = max(int(np.searchsorted(legal, legal[levels[site]] - STEP, side="right")) - 1, 0)
        found[int(site)] = (less, more)
    return found


@torch.no_grad()
def average_slopes(slopes: Slopes, model: DamageModel) -> SlopeData:
    """``slopes`` as data, linearised at the current weights of ``model``.

    Errors: of its own, and the luck of its windows, a mean has the less the more it is a mean of. What all slopes of a
    kind, of a base or of a site have in common stays, whatever their number; so does a step too large for a slope.
    """
    site, kept = slopes.site, model.kept(slopes.x_base)
    size = (kept / ALIKE).round().long()
    _, row = torch.unique(torch.stack([size, site], dim=-1), dim=0, return_inverse=True)
    count = torch.bincount(row).double()

    def mean(values: Tensor) -> Tensor:
        total = torch.zeros(len(count), *values.shape[1:], dtype=torch.float64).index_add_(0, row, values.double())
        return total / count.view(-1, *[1] * (values.dim() - 1))

    up, down = slopes.x_up, slopes.x_down
    pulls = model.shares(up) - model.shares(down)
    promised = mean(model.log_kl(up) - model.log_kl(down) - pulls @ model.log_weight)
    bend = mean(_second_order(slopes, model))
    site, kind = mean(site).round().long(), mean(model.kind[site]).round().long()
    same_base = (mean(size).round().long() * (int(model.kind.max()) + 1) + kind).unsqueeze(-1)
    scale, alike = promised / count.sqrt(), (site[:, None] == site[None])
    error = SCALE_ERROR**2 * (same_base == same_base.T) * scale[:, None] * scale[None]
    always = SITE_ERROR**2 * alike + KIND_ERROR**2 * (kind[:, None] == kind[None])
    error = error + always * promised[:, None] * promised[None]
    lucky = (OWN_ERROR**2 + WINDOW_LUCK**2) * promised.square() + FLOOR**2
    error = error + (lucky / count + (BEND_ERROR * bend).square()).diag()
    return SlopeData(mean(pulls), mean(kept), mean(slopes.rise) + bend - promised, error)


def _second_order(slopes: Slopes, model: DamageModel) -> Tensor:
    """What the second-order terms of both sides add to each slope, in log KL (unicuco/margins.py)."""
    up, down, base = (model.terms(x).sum(-1) for x in (slopes.x_up, slopes.x_down, slopes.x_base))
    return model.slope * (up + down - 2 * base) / (base + model.log_floor.exp())
