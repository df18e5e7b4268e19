"""The evaluator actor: one process that pins the base model and measures the candidates it is given."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from actors.factory import Factory

if TYPE_CHECKING:
    from unicuco.evaluations import Candidate, Evaluation


class EvaluatorLike(Protocol):
    """What the actor wraps: ``unicuco.evaluator.Evaluator`` or anything that measures as it does."""

    def evaluate(self, candidate: Candidate) -> Evaluation: ...


@dataclass(frozen=True)
class WorkerInfo:
    """Where an evaluator runs."""

    pid: int
    host: str


class EvaluatorActor:
    """Thin and synchronous: calls run one after the other, in the order in which they came.

    The evaluator is built on the first call and not in the constructor: an error there then reaches the caller as
    itself instead of as a dead actor, and an actor that Ray restarted builds its evaluator anew.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._evaluator: EvaluatorLike | None = None

    def hello(self) -> None:
        """Answers once the actor lives."""

    def ready(self) -> WorkerInfo:
        """Loads and pins the base model."""
        self._pinned()
        return WorkerInfo(os.getpid(), socket.gethostname())

    def evaluate(self, candidate: Candidate) -> Evaluation:
        return self._pinned().evaluate(candidate)

    def _pinned(self) -> EvaluatorLike:
        if self._evaluator is None:
            self._evaluator = self._factory.build()
        return self._evaluator


def thread_settings(threads: int) -> dict[str, str]:
    """Environment of an actor: what every numerical library takes its number of threads from."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def create_evaluator(factory: Factory, *, cpus: float, gpus: float, threads: int) -> Any:
    """A new evaluator actor (its handle).

    Ray restarts it wherever there is room, without end, and never repeats a call by itself: whether a candidate is
    tried again is the pool's decision, which counts. Torch takes ``threads`` from the environment of the actor's
    process.
    """
    import ray

    return (
        ray.remote(EvaluatorActor)
        .options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": thread_settings(threads)},
        )
        .remote(factory)
    )
