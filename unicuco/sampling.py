"""How KL on fresh windows differs from KL on the search windows: by how much on average, and how far by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unicuco.evaluations import Evaluation

Z90 = 1.645
"""Half a 90 % interval, in standard deviations."""
ENOUGH_KL = 0.01
"""Below this KL, noise of the number format decides how windows differ."""
NEAR = 0.08
"""Kept shares this far apart are still alike."""


@dataclass(frozen=True)
class Sampling:
    """From log KL on the search windows to log KL on as many fresh ones, at each kept share (``n``).

    Attributes:
        shift: what to add: the search windows may be harder or easier than others.
        variance: of a fresh draw around that, widened for what is itself guessed.
    """

    shift: np.ndarray
    variance: np.ndarray


def sampling(evaluations: Sequence[Evaluation], kept: np.ndarray) -> Sampling:
    """Shift and variance at the kept shares ``kept`` (``n``); zeros where nothing tells.

    Draws of windows are easier or harder by a factor, log-normal, and the search windows are one draw; each group of
    margin windows is another, seen in what the same strategies have there. With G groups the search draw's own factor
    is known up to a (G + 1)-th of the variance, and the variance itself from G degrees of freedom. How the search
    windows differ among themselves adds as many degrees of freedom as there are windows, less one. The interval of a t
    distribution is wider at 90 % than a normal one: so much is added. Windows differ more, in proportion, where little
    is pruned: evaluations of all sizes say by how much.
    """
    kept = np.atleast_1d(np.asarray(kept, dtype=np.float64))
    seen = [e for e in evaluations if len(e.window_kl) > 1 and e.kl > ENOUGH_KL]
    nothing = Sampling(np.zeros(len(kept)), np.zeros(len(kept)))
    if not seen:
        return nothing
    windows = len(seen[0].window_kl)
    within = np.array([np.var(e.window_kl, ddof=1) / windows / e.kl**2 for e in seen])
    sizes, typical = np.array([e.kept for e in seen]), float(np.median(within))
    if typical <= 0:
        return nothing

    def shape(at: np.ndarray) -> np.ndarray:
        """Variance at these sizes, in units of the typical one."""
        near = np.exp(-(((at[:, None] - sizes[None]) / NEAR).clip(-6, 6) ** 2) / 2)
        return near @ within / near.sum(axis=1) / typical

    groups: dict[int, list[float]] = {}
    for e in seen:
        if e.margin_group >= 0 and e.margins_kl > ENOUGH_KL:
            gap = float(np.log(e.margins_kl / e.kl) / np.sqrt(shape(np.array([e.kept]))[0]))
            groups.setdefault(e.margin_group, []).append(gap)
    draws = [[0.0], *groups.values()]  # the search windows' own gap is 0
    center = float(np.mean([np.mean(gaps) for gaps in draws]))
    # Strategy by strategy: a draw is not harder by the same factor for all of them.
    squares = sum(float(np.mean((np.array(gaps) - center) ** 2)) for gaps in draws)
    freedom = windows - 1 + len(groups)
    pooled = (typical * (windows - 1) + squares) / freedom
    widened = pooled * (1 + 1 / len(draws)) * (t90(freedom) / Z90) ** 2
    at = shape(kept)
    return Sampling(center * np.sqrt(at), widened * at)


def t90(freedom: int) -> float:
    """Half a 90 % interval of the t distribution, by its expansion around the normal one (1 % at 5 degrees)."""
    z = Z90
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
