"""Objectives of a search, all minimised: costs (exact) and log KLs (from surrogates), on a common scale from 0 to 1.

There is one cost, size (the paper), or size and latency (unicuco/costs.py); and one quality, the mean KL (the paper),
or one per calibration domain. Costs come first everywhere. All are scaled so that the front runs from
about (1, 0) to (0, 1): without that, useful preferences crowd at one end, because KL spans orders of magnitude (methods
of UniCuCo leave the scaling open; reconstructed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unicuco.space import SearchSpace

DIRECTIONS = 4096
"""Directions in which hypervolume is measured where there are more than two objectives."""


@dataclass(frozen=True)
class Scale:
    """Where 0 and 1 lie: costs from ``kept_low`` (of the dense blocks') to 1, each log KL from its ``log_kl_low`` to
    its ``log_kl_high``."""

    kept_low: float
    log_kl_low: tuple[float, ...]
    log_kl_high: tuple[float, ...]

    @property
    def num_qualities(self) -> int:
        return len(self.log_kl_low)

    @property
    def ranges(self) -> np.ndarray:
        """``log_kl_high - log_kl_low`` (``num_qualities``)."""
        return np.subtract(self.log_kl_high, self.log_kl_low)

    def cost(self, left: Tensor) -> Tensor:
        """Shares of the dense blocks' costs that are left, scaled."""
        return (left - self.kept_low) / (1 - self.kept_low)

    def quality(self, log_kl: Tensor) -> Tensor:
        """``n x num_qualities`` log KLs, scaled."""
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (self.log_kl_low, self.log_kl_high))
        return (log_kl - low) / (high - low)

    def values(self, costs: Tensor, log_kl: Tensor) -> Tensor:
        """Scaled objectives (``n x num_objectives``) from ``n x num_costs`` and ``n x num_qualities``."""
        return torch.cat([self.cost(costs), self.quality(log_kl)], dim=-1)


def site_shares(space: SearchSpace) -> np.ndarray:
    """Share of the blocks' parameters in each site (``num_sites``): kept(x) = 1 − shares · x, exactly."""
    return space.tables["params"][:, 0] / space.geometry.block_params


def tchebycheff(preference: Tensor, values: Tensor, tie_breaker: float, num_costs: int = 1) -> Tensor:
    """Weighted Tchebycheff of cost against quality, with a small sum (``n``), ideal point at 0.

    With size and one quality it is the paper's maxᵢ λᵢ fᵢ + ρ Σ λᵢ fᵢ (UniCuCo, section 3). Several qualities enter the
    maximum as one, their sum Σ_d λ_d f_d: KLs of domains rise and fall together, so a maximum over all of them would
    see one domain alone for nearly every preference; and so do size and latency (docs/decisions.md).

    Args:
        preference, values: ``n x num_objectives``, ``num_costs`` costs first.
    """
    weighted = preference * values
    sides = torch.stack([weighted[..., :num_costs].sum(dim=-1), weighted[..., num_costs:].sum(dim=-1)], dim=-1)
    return sides.amax(dim=-1) + tie_breaker * weighted.sum(dim=-1)


def join_preferences(weight: Tensor, of_costs: Tensor, shares: Tensor) -> Tensor:
    """Preferences (``n x num_objectives``) from the weight of all costs together (``n``).

    Args:
        of_costs: the costs' shares of it (``n x num_costs``); shares: the qualities' of the rest (``n x
            num_qualities``). Each row adds up to 1.
    """
    return torch.cat([weight[:, None] * of_costs, (1 - weight)[:, None] * shares], dim=-1)


def serving_scores(
    preference: np.ndarray, objectives: np.ndarray, by_cost: np.ndarray, num_costs: int = 1
) -> np.ndarray:
    """How well strategies serve each request (``n x m``, minimised).

    Args:
        preference: ``n x num_objectives``; objectives: of each request's strategies, scaled (``n x m x
            num_objectives``).
        by_cost: which requests weigh costs (``n``); the others want quality alone, within their bounds.
    """
    rest = preference[:, num_costs:]
    shares = rest / np.maximum(rest.sum(axis=1, keepdims=True), 1e-300)  # costs alone: none
    scores = (objectives[..., num_costs:] @ shares[:, :, None])[..., 0]
    if by_cost.any():
        weighed = torch.as_tensor(preference[by_cost])[:, None], torch.as_tensor(objectives[by_cost]).clamp_min(0)
        scores[by_cost] = tchebycheff(*weighed, 0.01, num_costs).numpy()
    return scores


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> float:
    """Area dominated by ``points`` (``n x 2``, minimised) up to ``reference``."""
    area, best = 0.0, reference[1]
    inside = points[(points < np.asarray(reference)).all(axis=1)]
    for first, second in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if second < best:
            area += (reference[0] - first) * (best - second)
            best = second
    return float(area)


def front(points: np.ndarray) -> np.ndarray:
    """Indices of the non-dominated rows of ``points`` (``n x 2``, minimised), by the first objective."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    chosen, best = [], np.inf
    for i in order:
        if points[i, 1] < best:
            chosen.append(int(i))
            best = points[i, 1]
    return np.array(chosen, dtype=np.int64)


def greedy_hypervolume(
    candidates: np.ndarray, known: np.ndarray, reference: tuple[float, ...], count: int
) -> list[int]:
    """Indices of ``count`` candidates, each adding most hypervolume given ``known`` and those chosen before.

    Exact for two objectives. For more, the hypervolume is a mean over fixed random directions of how far below the
    reference the points reach, to the power of the number of objectives (Deng and Zhang, 2019): its cost does not grow
    with the number of boxes between points, of which botorch's exact partitioning needs thousands at four objectives.

    Args:
        candidates: ``n x num_objectives`` (optimistic) values; known: ``m x num_objectives`` measured or pending ones.
    """
    if candidates.shape[1] > 2:
        return _greedy_in_directions(candidates, known, np.asarray(reference), count)
    chosen: list[int] = []
    points = known
    for _ in range(min(count, len(candidates))):
        gains = _gains(candidates, points, reference)
        gains[chosen] = -np.inf
        best = int(gains.argmax())
        if not np.isfinite(gains[best]) or gains[best] <= 0:
            break
        chosen.append(best)
        points = np.vstack([points, candidates[best]])
    return chosen


def _greedy_in_directions(candidates: np.ndarray, known: np.ndarray, reference: np.ndarray, count: int) -> list[int]:
    both = np.vstack([candidates, known])
    inside = np.all(both < reference, axis=1)
    if not inside.any():
        return []
    room = reference - both[inside].min(axis=0)  # all objectives on one scale, so that directions see all of them
    reach = directed_hypervolume((reference - both) / room * inside[:, None])
    best = reach[len(candidates) :].max(axis=0, initial=0.0)
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        gains = (reach[: len(candidates)] - best).clip(0).mean(axis=1)
        gains[chosen] = 0.0
        index = int(gains.argmax())
        if not gains[index] > 0:
            break
        chosen.append(index)
        best = np.maximum(best, reach[index])
    return chosen


def directed_hypervolume(height: np.ndarray, count: int = DIRECTIONS) -> np.ndarray:
    """Hypervolume as seen in ``count`` directions (``n x count``): the maximum over points, averaged, is theirs.

    Args:
        height: ``n x num_objectives`` distances below the reference; not positive (or not a number): nothing dominated.
    """
    dimensions = height.shape[1]
    drawn = np.abs(np.random.default_rng(0).standard_normal((count, dimensions)))
    directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    height = np.where(height > 0, height, 0.0)
    reach = (height[:, None, :] / directions[None]).min(axis=2)
    ball = math.pi ** (dimensions / 2) / (2**dimensions * math.gamma(dimensions / 2 + 1))  # its part with all signs +
    return ball * reach**dimensions


def _gains(candidates: np.ndarray, points: np.ndarray, reference: tuple[float, ...]) -> np.ndarray:
    """Hypervolume that each candidate alone would add (``n``), in one sweep over the front's steps."""
    inside = points[(points < np.asarray(reference)).all(axis=1)]
    steps = inside[front(inside)] if len(inside) else np.empty((0, 2))
    lefts = np.concatenate([[-np.inf], steps[:, 0]])
    rights = np.concatenate([steps[:, 0], [reference[0]]])
    heights = np.concatenate([[reference[1]], steps[:, 1]])  # the front's second value right of each left edge
    width = (rights[None] - np.maximum(lefts[None], candidates[:, :1])).clip(0)
    height = (heights[None] - candidates[:, 1:]).clip(0)
    return (width * height).sum(axis=1)
