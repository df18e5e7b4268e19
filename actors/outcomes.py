"""What the pool of evaluators reports: what became of candidates, and that there is room for more."""

from __future__ import annotations

from dataclasses import dataclass

from unicuco.evaluations import Candidate, Evaluation


@dataclass(frozen=True)
class Measured:
    candidate: Candidate
    evaluation: Evaluation


@dataclass(frozen=True)
class Returned:
    """The evaluator died; hand the candidate out again."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True)
class GivenUp:
    """The candidate failed for good."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True)
class Joined:
    """An evaluator is ready (again): there is room for more work."""


@dataclass(frozen=True)
class Nudged:
    """Nothing happened here; see ``EvaluatorPool.nudge``."""


Outcome = Measured | Returned | GivenUp | Joined | Nudged
