"""What a model scores on tasks, averages over tasks, and changes from another model on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

HEADLINE = {"piqa": "acc", "arc_easy": "acc", "arc_challenge": "acc_norm", "winogrande": "acc", "hellaswag": "acc_norm"}
"""The metric that tables in the literature print; of other tasks it is ``acc``, or else the first one."""


@dataclass(frozen=True)
class Score:
    """One metric of one task, as lm-eval reports it.

    Attributes:
        mean: its value over the examples; mostly a share that is right.
        error: its standard error; ``None`` where lm-eval has none.
        each: the value of every example in the order of the data, so that models are compared example by example;
            empty where the metric is no mean over examples.
    """

    mean: float
    error: float | None
    each: list[float]


@dataclass(frozen=True)
class TaskScore:
    """Scores of one task.

    Attributes:
        headline: the metric that stands for the task.
        chance: what guessing scores: the mean of 1 / number of choices; ``None`` where there are no choices.
    """

    metrics: dict[str, Score]
    headline: str
    chance: float | None
    examples: int

    @property
    def score(self) -> Score:
        return self.metrics[self.headline]


Scores = dict[str, TaskScore]
"""By task."""


def headline_of(task: str, metrics: Sequence[str]) -> str:
    """The metric of ``task`` that stands for it, among ``metrics``."""
    wanted = HEADLINE.get(task, "acc")
    return wanted if wanted in metrics else metrics[0]


def average(scores: Scores) -> tuple[float, float | None]:
    """Mean of the tasks' headline metrics, and its standard error (tasks are independent)."""
    found = [task.score for task in scores.values()]
    return float(np.mean([s.mean for s in found])), _pooled([s.error for s in found])


def above_chance(scores: Scores) -> float | None:
    """Mean over tasks of how far the headline metric is above guessing; ``None`` where a task has no chance level.

    Its standard error is that of ``average``: what guessing scores is known.
    """
    gaps = [None if t.chance is None else t.score.mean - t.chance for t in scores.values()]
    return None if None in gaps else float(np.mean([g for g in gaps if g is not None]))


def change(score: Score, other: Score) -> tuple[float, float | None]:
    """By how much ``score`` is above ``other``, and the standard error of that on the same examples.

    Raises:
        ValueError: they are of different examples.
    """
    if len(score.each) != len(other.each):
        raise ValueError(f"{len(score.each)} and {len(other.each)} examples cannot be paired")
    error = None
    if len(score.each) > 1:
        gaps = np.array(score.each) - np.array(other.each)
        error = float(np.std(gaps, ddof=1) / np.sqrt(len(gaps)))
    return score.mean - other.mean, error


def average_change(scores: Scores, other: Scores) -> tuple[float, float | None]:
    """By how much ``scores``' average is above ``other``'s, and the standard error of that on the same examples."""
    changes = [change(task.score, other[name].score) for name, task in scores.items()]
    return float(np.mean([c for c, _ in changes])), _pooled([error for _, error in changes])


def _pooled(errors: list[float | None]) -> float | None:
    """Standard error of a mean of independent figures."""
    if any(e is None for e in errors):
        return None
    return float(np.sqrt(np.sum([e**2 for e in errors if e is not None])) / len(errors))


def to_json(scores: Scores) -> dict[str, Any]:
    return {name: asdict(task) for name, task in scores.items()}


def from_json(found: dict[str, Any]) -> Scores:
    return {
        name: TaskScore(**{**task, "metrics": {m: Score(**s) for m, s in task["metrics"].items()}})
        for name, task in found.items()
    }
