"""How far the KL of one strategy varies between draws of windows: the part of an interval that no search can remove."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unicuco.evaluations import Evaluation

Z90 = 1.645
"""Half a 90 % interval, in standard deviations."""
ENOUGH_KL = 0.01
"""Below this KL, noise of the number format decides how windows differ."""
NEAR = 0.08
"""Kept shares this far apart are still alike."""


def sampling_variance(evaluations: Sequence[Evaluation], kept: np.ndarray) -> np.ndarray:
    """Variance of log KL between one draw of windows and another of the same number, at each kept share (``n``).

    Two sources. How KL differs between the search windows themselves: few windows, and all evaluations have the same
    ones, so this is one estimate with one degree of freedom less than windows. And how KL on each group of margin
    windows differs from KL on the search windows: a draw against a draw, one degree of freedom per group. Pooled by
    their degrees of freedom, and widened as far as a t distribution is wider at 90 % than a normal one, for the
    variance itself is guessed. Windows differ more, in proportion, where little is pruned: the first source has enough
    evaluations of all sizes to say by how much.
    """
    kept = np.atleast_1d(np.asarray(kept, dtype=np.float64))
    seen = [e for e in evaluations if len(e.window_kl) > 1 and e.kl > ENOUGH_KL]
    if not seen:
        return np.zeros(len(kept))
    windows = len(seen[0].window_kl)
    within = np.array([2 * np.var(e.window_kl, ddof=1) / windows / e.kl**2 for e in seen])
    sizes, typical = np.array([e.kept for e in seen]), float(np.median(within))
    if typical <= 0:
        return np.zeros(len(kept))

    def shape(at: np.ndarray) -> np.ndarray:
        """Variance at these sizes, in units of the typical one."""
        near = np.exp(-(((at[:, None] - sizes[None]) / NEAR).clip(-6, 6) ** 2) / 2)
        return near @ within / near.sum(axis=1) / typical

    groups: dict[int, list[float]] = {}
    for e in seen:
        if e.margin_group >= 0 and e.margins_kl > ENOUGH_KL:
            gap = float(np.log(e.margins_kl / e.kl) / np.sqrt(shape(np.array([e.kept]))[0]))
            groups.setdefault(e.margin_group, []).append(gap)
    between = [float(np.mean(gaps)) ** 2 for gaps in groups.values()]
    freedom = windows - 1 + len(between)
    pooled = (typical * (windows - 1) + sum(between)) / freedom
    return pooled * (_t90(freedom) / Z90) ** 2 * shape(kept)


def _t90(freedom: int) -> float:
    """Half a 90 % interval of the t distribution, by its expansion around the normal one (1 % at 5 degrees)."""
    z = Z90
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
