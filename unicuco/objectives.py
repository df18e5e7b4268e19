"""Objectives of a search, all minimised: size (exact) and log KL (from the surrogate), on a common scale from 0 to 1.

Both are scaled so that the front runs from about (1, 0) to (0, 1): without that, useful preferences crowd at one end,
because KL spans orders of magnitude (methods of UniCuCo leave the scaling open; reconstructed).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unicuco.space import SearchSpace


@dataclass(frozen=True)
class Scale:
    """Where 0 and 1 lie: sizes from ``kept_low`` to 1, log KL from ``log_kl_low`` to ``log_kl_high``."""

    kept_low: float
    log_kl_low: float
    log_kl_high: float

    def size(self, kept: Tensor) -> Tensor:
        return (kept - self.kept_low) / (1 - self.kept_low)

    def quality(self, log_kl: Tensor) -> Tensor:
        return (log_kl - self.log_kl_low) / (self.log_kl_high - self.log_kl_low)


def site_shares(space: SearchSpace) -> np.ndarray:
    """Share of the blocks' parameters in each site (``num_sites``): kept(x) = 1 − shares · x, exactly."""
    return space.tables["params"][:, 0] / space.geometry.block_params


def tchebycheff(preference: Tensor, values: Tensor, tie_breaker: float) -> Tensor:
    """Weighted Tchebycheff with a small sum: maxᵢ λᵢ fᵢ + ρ Σ λᵢ fᵢ (``n``), ideal point at 0 (UniCuCo, section 3).

    Args:
        preference, values: ``n x num_objectives``.
    """
    weighted = preference * values
    return weighted.amax(dim=-1) + tie_breaker * weighted.sum(dim=-1)


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
    candidates: np.ndarray, known: np.ndarray, reference: tuple[float, float], count: int
) -> list[int]:
    """Indices of ``count`` candidates, each adding most hypervolume given ``known`` and those chosen before.

    Args:
        candidates: ``n x 2`` (optimistic) objective values; known: ``m x 2`` measured or pending ones.
    """
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


def _gains(candidates: np.ndarray, points: np.ndarray, reference: tuple[float, float]) -> np.ndarray:
    """Hypervolume that each candidate alone would add (``n``), in one sweep over the front's steps."""
    inside = points[(points < np.asarray(reference)).all(axis=1)]
    steps = inside[front(inside)] if len(inside) else np.empty((0, 2))
    lefts = np.concatenate([[-np.inf], steps[:, 0]])
    rights = np.concatenate([steps[:, 0], [reference[0]]])
    heights = np.concatenate([[reference[1]], steps[:, 1]])  # the front's second value right of each left edge
    width = (rights[None] - np.maximum(lefts[None], candidates[:, :1])).clip(0)
    height = (heights[None] - candidates[:, 1:]).clip(0)
    return (width * height).sum(axis=1)
