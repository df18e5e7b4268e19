"""The front that was measured so far, kept up to date by one evaluation at a time.

A run's progress is asked for far more often than it changes, while training competes for the interpreter: going through
thousands of evaluations each time took tens of milliseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import numpy as np

from unicuco.evaluations import Evaluation
from unicuco.objectives import hypervolume
from unicuco.surrogate import NOISE_FLOOR


class MeasuredFront:
    """Non-dominated (kept, KL) of the evaluations that were added; a KL that is not a positive number is left out."""

    def __init__(self, evaluations: Iterable[Evaluation] = ()) -> None:
        self._kept: list[float] = []
        self._kl: list[float] = []
        self._uniform = math.inf
        for evaluation in evaluations:
            self.add(evaluation)

    def add(self, evaluation: Evaluation) -> None:
        kept, kl = float(evaluation.kept), float(evaluation.kl)
        if not 0 < kl < math.inf:
            return
        if evaluation.origin == "uniform" and kept <= 0.5:  # the ladder ends at bound 0.5
            self._uniform = min(self._uniform, kl)
        # Of all that are no larger, the one before has the smallest KL.
        before = bisect_right(self._kept, kept) - 1
        if before >= 0 and self._kl[before] <= kl:
            return
        place = bisect_left(self._kept, kept)
        end = place
        while end < len(self._kl) and self._kl[end] >= kl:
            end += 1
        self._kept[place:end], self._kl[place:end] = [kept], [kl]

    def points(self) -> list[tuple[float, float]]:
        """(kept, KL), smallest first."""
        return list(zip(self._kept, self._kl, strict=True))

    def hypervolume(self) -> float:
        """Of (kept, log KL), reference (1, log KL of uniform at kept 0.5); 0 before that is known."""
        if math.isinf(self._uniform):
            return 0.0
        points = np.array([(kept, math.log(max(kl, NOISE_FLOOR))) for kept, kl in self.points()])
        return hypervolume(points, (1.0, math.log(self._uniform)))
