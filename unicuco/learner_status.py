"""What a learner says of itself. Imports nothing, so that whoever only shows it need not load torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainReport:
    """One training: its policy version, evaluations used, and the final loss of StratNet."""

    version: int
    evaluations: int
    loss: float
    noise: float


@dataclass(frozen=True)
class LearnerStatus:
    """Counts, always ``submitted == done + failed + running``, and how far the search is.

    Attributes:
        spent: of the budget by what is done or failed, in standard evaluations.
        front: (kept, KL) of the measured non-dominated strategies, by size.
        hypervolume: of (kept, log KL), reference (1, log KL of uniform at kept 0.5); 0 before that is known. Of the
            mean KL, also where domains are objectives, so that runs of both forms can be compared.
        waiting: proposals of the last training that nobody has asked for yet.
        staleness: trainings that the last evaluations were behind when they came back, on average.
    """

    submitted: int
    done: int
    failed: int
    running: int
    version: int
    hypervolume: float
    front: list[tuple[float, float]]
    spent: float
    waiting: int = 0
    staleness: float = 0.0
