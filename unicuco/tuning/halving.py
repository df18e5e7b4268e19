"""A cheap first rung for all settings, finals for the best of them, and the verdict.

In the finals each meets the default on the same seeds, which are not those that it was chosen by. Who gets there is
decided when the first rung is complete, never in between: what a sweep finds does not depend on how many processes ran
it, or on which was faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unicuco.errors import TuningError
from unicuco.sampling import t90
from unicuco.tuning.study import RUNGS, Job, Score

DEFAULT = 0
"""Number of the default setting."""
FINALS = len(RUNGS) - 1
WORTH = 0.005
"""Least gain in log KL that a change of settings is worth: half a percent, which no real run could tell from none."""
TOLERANCE = 0.02
"""Nats per evaluation that a surrogate may predict worse than the default's, whatever the noise."""


@dataclass(frozen=True)
class Standing:
    """A finalist against the default, on the same seeds.

    Attributes:
        gain: how much lower its front is, in log KL, on average over the seeds; error: standard error of that.
        density: how much better it predicts later evaluations, in nats; density_error likewise, over evaluations.
        predicts: whether that is no worse than the default by more than noise.
        beats: whether it predicts, and the gain is more than noise and worth a change.
    """

    setting: int
    gain: float
    error: float
    density: float
    density_error: float
    predicts: bool
    beats: bool


class Halving:
    """Says which job is next, is told what came of it, and gives the verdict at the end.

    Args:
        count: settings, the default (number 0) included; finalists, seeds, seed: as in ``unicuco.tuning.sweep.Sweep``.
    """

    def __init__(self, count: int, finalists: int, seeds: int, seed: int) -> None:
        self._finalists = finalists
        self._seeds = tuple(seed + 1 + i for i in range(seeds))
        self._waiting = [Job(setting, 0, seed) for setting in range(count)]
        self._running: set[Job] = set()
        self.scores: dict[Job, Score] = {}
        self.total = count + min(count, finalists + 1) * seeds
        """Trials in all, if none fails."""

    def next(self) -> Job | None:
        """The next job, or None while the ones that run decide what it is."""
        if not self._waiting:
            return None
        job = self._waiting.pop(0)
        self._running.add(job)
        return job

    def tell(self, job: Job, score: Score) -> None:
        """Takes a job's score; the last one of the first rung opens the finals.

        Raises:
            TuningError: it is the default's, and it failed: there is nothing to compare with.
        """
        self._running.discard(job)
        self.scores[job] = score
        if score.error and job.setting == DEFAULT:
            self._waiting = []
            raise TuningError(f"The run's own settings fail on its log: {score.error}.")
        if self.finished and job.rung < FINALS:
            best = [setting for setting in self.ranked() if setting != DEFAULT][: self._finalists]
            self._waiting = [Job(setting, FINALS, own) for setting in (DEFAULT, *best) for own in self._seeds]

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._running

    @property
    def failures(self) -> dict[Job, str]:
        """What went wrong, by job."""
        return {job: score.error for job, score in self.scores.items() if score.error}

    def ranked(self) -> list[int]:
        """Settings that did not fail in the first rung; those that predict as the default does, best front first."""
        found = {job.setting: score for job, score in self.scores.items() if job.rung == 0 and not score.error}
        default = found[DEFAULT]
        return sorted(found, key=lambda s: (not _predicts(found[s], default), found[s].front, s))

    def standings(self) -> list[Standing]:
        """The finalists that did not fail, the largest gain first."""
        finals = {job: score for job, score in self.scores.items() if job.rung == FINALS}
        names = {job.setting for job in finals} - {DEFAULT}
        sound = [s for s in names if not any(finals[Job(s, FINALS, seed)].error for seed in self._seeds)]
        return sorted((self._standing(s) for s in sound), key=lambda standing: (-standing.gain, standing.setting))

    def _standing(self, setting: int) -> Standing:
        pairs = [(self.scores[Job(setting, FINALS, s)], self.scores[Job(DEFAULT, FINALS, s)]) for s in self._seeds]
        gains = [default.front - own.front for own, default in pairs]
        gain, error = _mean_and_error(gains)
        predicts = _predicts(*pairs[0])
        beats = predicts and gain > max(WORTH, t90(len(gains) - 1) * error)
        return Standing(setting, gain, error, *_density_gain(*pairs[0]), predicts, beats)

    def winner(self) -> int:
        """The setting to use: the default, unless a finalist beats it."""
        return next((standing.setting for standing in self.standings() if standing.beats), DEFAULT)


def _predicts(own: Score, default: Score) -> bool:
    gain, error = _density_gain(own, default)
    return gain >= -max(TOLERANCE, 2 * error)


def _density_gain(own: Score, default: Score) -> tuple[float, float]:
    """By how much ``own`` predicts later evaluations better, in nats, and its standard error over them."""
    return _mean_and_error(np.subtract(own.later, default.later).tolist())


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
