"""How far the KL of one strategy varies between draws of windows: the part of an interval that no search can remove."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unicuco.evaluations import Evaluation
from unicuco.surrogate import NOISE_FLOOR

Z90 = 1.645
"""Half a 90 % interval, in standard deviations."""
ENOUGH_KL = 0.01
"""Below this KL, noise of the number format decides how windows differ."""


def sampling_variance(evaluations: Sequence[Evaluation]) -> float:
    """Variance of log KL between one draw of windows and another of the same number.

    Two sources. How KL differs between the search windows themselves: few windows, and all evaluations have the same
    ones, so this is one estimate with one degree of freedom less than windows. And how KL on each group of margin
    windows differs from KL on the search windows: a draw against a draw, one degree of freedom per group. Pooled by
    their degrees of freedom, and widened as far as a t distribution is wider at 90 % than a normal one, for the
    variance itself is guessed.
    """
    within = [
        2 * np.var(e.window_kl, ddof=1) / len(e.window_kl) / max(e.kl, NOISE_FLOOR) ** 2
        for e in evaluations
        if len(e.window_kl) > 1 and e.kl > ENOUGH_KL
    ]
    groups: dict[int, list[float]] = {}
    for e in evaluations:
        if e.margin_group >= 0 and e.margins_kl > ENOUGH_KL and e.kl > ENOUGH_KL:
            groups.setdefault(e.margin_group, []).append(float(np.log(e.margins_kl / e.kl)))
    between = [float(np.mean(gaps)) ** 2 for gaps in groups.values()]
    estimates: list[tuple[float, int]] = []
    if within:
        windows = next(len(e.window_kl) for e in evaluations if len(e.window_kl) > 1)
        estimates.append((float(np.median(within)), windows - 1))
    if between:
        estimates.append((float(np.mean(between)), len(between)))
    if not estimates:
        return 0.0
    freedom = sum(count for _, count in estimates)
    pooled = sum(value * count for value, count in estimates) / freedom
    return pooled * (_t90(freedom) / Z90) ** 2


def _t90(freedom: int) -> float:
    """Half a 90 % interval of the t distribution, by its expansion around the normal one (1 % at 5 degrees)."""
    z = Z90
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
