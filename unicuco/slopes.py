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
MOST_PER_UNIT = 4000
"""Means of all sites per unit of kept share, at most: models of many sites average over more than ``ALIKE``."""
WINDOW_LUCK = 0.35
"""How far a site's weight on one draw of windows is from its weight on all text, in logs (``benchmarks.margins``)."""
OWN_ERROR, FLOOR = 0.15, 0.002
"""What a slope may be off by on its own: a share of what the damages promise, and at least this much in log KL."""
KIND_ERROR, SCALE_ERROR, SITE_ERROR = 0.2, 0.3, 0.15
"""What slopes may be off by together, as shares: all of one kind of site, those of one base and kind, of one site."""
BROKEN_KL = 5.0
"""Nats per token from which on a base's slopes are left out: around a model that says nothing, no site has a weight."""
BEND_ERROR = 0.6
"""Share of the second-order terms that they may be off by: a large step is not a slope."""


@dataclass(frozen=True)
class Slopes:
    """Differences of log KL between two strategies that differ in one site, on both sides of a third, their base.

    All slopes of a base share its other sites, so each is stored as a site and two levels.

    Attributes:
        bases: sparsities of the strategies around which slopes were measured (``num_bases x num_sites``).
        base: row of ``bases`` that each slope belongs to (``n``).
        site: the site that each is about (``n``).
        up, down: its levels on both sides (``n``); ``up`` prunes more than the base does, ``down`` less.
        rise: log KL(up) − log KL(down), to first order around the base (``n``).
    """

    bases: Tensor
    base: Tensor
    site: Tensor
    up: Tensor
    down: Tensor
    rise: Tensor

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
    nothing of its own weight, so it gets no slope. Nor does a strategy that breaks the model (``BROKEN_KL``).
    """
    bases: list[np.ndarray] = []
    rows: list[tuple[int, int, int, int]] = []
    rise: list[float] = []
    for evaluation in evaluations:
        if not evaluation.margins or not 0 < evaluation.margins_kl < BROKEN_KL:
            continue
        levels = evaluation.levels_array()
        change = np.asarray(evaluation.margins, dtype=np.float64).reshape(space.levels.shape)
        for site, (less, more) in steps(space, levels).items():
            rows.append((len(bases), site, more, less))
            rise.append((change[site, more] - change[site, less]) / evaluation.margins_kl)
        bases.append(space.sparsities(levels))
    base, site, up, down = torch.as_tensor(np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy())
    around = torch.as_tensor(np.array(bases, dtype=np.float64).reshape(-1, space.num_sites))
    return Slopes(around, base, site, up, down, torch.as_tensor(np.array(rise, dtype=np.float64)))


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

    Time and memory are those of ``num_bases x num_sites`` and ``num_rows x (num_bases + num_rows)``: a strategy that
    differs from its base in one site is never written out.
    """
    site, of = slopes.site, model.kept(slopes.bases)
    size = (of / max(ALIKE, model.num_sites / MOST_PER_UNIT)).round().long()
    keys, row = torch.unique(torch.stack([size[slopes.base], site], dim=-1), dim=0, return_inverse=True)
    count = torch.bincount(row).double()

    def mean(values: Tensor) -> Tensor:
        return torch.zeros_like(count).index_add_(0, row, values) / count

    pulls = _pulls(slopes, model)
    change = pulls.change - pulls.common * pulls.at_prior[slopes.base] - pulls.own * model.log_weight[site]
    promised, bend = mean(change), mean(pulls.bend)
    steps = torch.zeros(len(count), len(slopes.bases), dtype=torch.float64)
    steps[row, slopes.base] = pulls.common / count[row]  # a base has one slope per site: nothing is overwritten
    steps = steps @ pulls.terms
    sites = keys[:, 1]
    steps[torch.arange(len(count)), sites] += mean(pulls.own)
    kind = model.kind[sites]
    same_base = (keys[:, 0] * (int(model.kind.max()) + 1) + kind).unsqueeze(-1)
    scale, alike = promised / count.sqrt(), (sites[:, None] == sites[None])
    error = SCALE_ERROR**2 * (same_base == same_base.T) * scale[:, None] * scale[None]
    always = SITE_ERROR**2 * alike + KIND_ERROR**2 * (kind[:, None] == kind[None])
    error = error + always * promised[:, None] * promised[None]
    lucky = (OWN_ERROR**2 + WINDOW_LUCK**2) * promised.square() + FLOOR**2
    error = error + (lucky / count + (BEND_ERROR * bend).square()).diag()
    return SlopeData(steps, mean(of[slopes.base]), mean(slopes.rise) + bend - promised, error)


@dataclass(frozen=True)
class _Pulls:
    """What each slope is at the current weights: ``common`` times its base's terms, and ``own`` at its site.

    Attributes:
        terms: additive damages of the bases (``num_bases x num_sites``).
        at_prior: their products with the sites' log weights (``num_bases``).
        common, own: how a slope pulls at all sites' log weights, per term of its base, and further at its own (``n``).
        change: promised change of log KL at the current weights (``n``).
        bend: what the second-order terms of both sides add to it (``n``; unicuco/margins.py).
    """

    terms: Tensor
    at_prior: Tensor
    common: Tensor
    own: Tensor
    change: Tensor
    bend: Tensor


def _pulls(slopes: Slopes, model: DamageModel) -> _Pulls:
    terms, slope, floor = model.terms(slopes.bases), model.slope, model.log_floor.exp()
    table = model.additive_table(model.log_weight)
    before = terms[slopes.base, slopes.site]
    more, less = (table[slopes.site, level] - before for level in (slopes.up, slopes.down))
    base = terms.sum(-1)[slopes.base] + floor
    up, down = base + more, base + less
    return _Pulls(
        terms=terms,
        at_prior=terms @ model.log_weight,
        common=slope * (1 / up - 1 / down),
        own=slope * (more / up - less / down),
        change=slope * (up.log() - down.log()),
        bend=slope * (more + less) / base,
    )
