"""The pool: hands candidates to evaluators, and comes through their deaths.

Every candidate that is submitted comes back as exactly one outcome: measured, returned (its evaluator died; it is to be
handed out again), or given up. At any time ``submitted = done + failed + returned + running``.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError, OutOfMemoryError, RayActorError

from actors.evaluator import create_evaluator
from actors.factory import Factory
from actors.outcomes import GivenUp, Joined, Measured, Nudged, Outcome, Returned
from actors.placement import PoolPlan
from actors.runtime import original_error
from unicuco.errors import UniCuCoError
from unicuco.evaluations import Candidate

DEATHS = (RayActorError, OutOfMemoryError)
"""What a call to an actor raises when the actor's process ended. Where Ray's memory monitor ended it, the error is not
an actor's, but the actor is restarted like any other."""
OUTCOMES_AT_ONCE = 16
"""Each batch is one write to disk, which hundreds of evaluators that end together need; but while it is prepared nobody
is asked or told anything else."""


class EvaluatorsLostError(UniCuCoError):
    """Evaluators die or fail whatever they are given: something is wrong with the machine, not with a candidate."""


@dataclass(eq=False)
class _Flight:
    candidate: Candidate
    life: int
    """Which life of the evaluator it was given to; a restart begins the next."""


@dataclass(eq=False)
class _Worker:
    handle: Any
    placed: bool = False
    ready: bool = False
    life: int = 0
    flights: deque[_Flight] = field(default_factory=deque)
    """Oldest first; the evaluator runs them in this order."""


@dataclass(frozen=True)
class PoolSetup:
    """What an ``EvaluatorPool`` is built from."""

    factory: Factory
    plan: PoolPlan
    in_flight: int = 2
    attempts: int = 3


class EvaluatorPool:
    """A fixed number of evaluators. Lives in one event loop; nothing in it blocks.

    Args:
        factory: builds the evaluator inside each actor.
        in_flight: most candidates at one evaluator at a time.
        attempts: evaluators that may die or fail under one candidate before it is given up; so many candidates given up
            in a row, or so many deaths per evaluator while loading, end the run.
    """

    PING_SECONDS = (0.1, 5.0)
    """First and longest pause between two tries to reach an evaluator that is being restarted."""

    def __init__(self, factory: Factory, plan: PoolPlan, in_flight: int = 2, attempts: int = 3) -> None:
        self._factory, self._plan = factory, plan
        self._in_flight, self._attempts = in_flight, attempts
        self._workers: list[_Worker] = []
        self._outcomes: asyncio.Queue[Outcome | BaseException] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._blame: Counter[str] = Counter()
        self._suspects: set[str] = set()  # were at an evaluator when it died, and are not settled yet
        self._lost_in_a_row = 0  # candidates given up since the last one measured
        self._dead_while_loading = 0  # since an evaluator last became ready
        self.submitted = self.done = self.failed = self.returned = 0

    @property
    def running(self) -> int:
        """Candidates at evaluators now."""
        return sum(len(worker.flights) for worker in self._workers)

    @property
    def placed(self) -> int:
        """Evaluators that live: a node had room for them. Those that are not ready load their model."""
        return sum(worker.placed for worker in self._workers)

    @property
    def ready(self) -> int:
        """Evaluators that can take work now."""
        return sum(worker.ready for worker in self._workers)

    @property
    def free(self) -> int:
        """How many more candidates can be submitted now."""
        return sum(max(0, self._cap - len(worker.flights)) for worker in self._workers if worker.ready)

    @property
    def _cap(self) -> int:
        """Candidates per evaluator. After a death nobody can tell which of two was to blame: then one at a time."""
        return 1 if self._suspects else self._in_flight

    def start(self) -> None:
        """Creates the evaluators; each joins when it has loaded its model."""
        for _ in range(self._plan.evaluators):
            worker = _Worker(self._create())
            self._workers.append(worker)
            self._spawn(self._bring_up(worker))

    def submit(self, candidate: Candidate) -> None:
        """Hands ``candidate`` to the least loaded evaluator; there must be room (``free``)."""
        open_workers = [w for w in self._workers if w.ready and len(w.flights) < self._cap]
        if not open_workers:
            raise RuntimeError("submit() without room in the pool")
        worker = min(open_workers, key=lambda w: len(w.flights))
        flight = _Flight(candidate, worker.life)
        worker.flights.append(flight)
        self.submitted += 1
        self._spawn(self._fly(worker, flight, worker.handle.evaluate.remote(candidate)))

    async def next_outcomes(self) -> list[Outcome]:
        """The next thing that happened, and what else has happened since, in order; ``OUTCOMES_AT_ONCE`` at most.

        Raises:
            UniCuCoError: an evaluator cannot be set up, or all of them fail; what happened before comes first.
        """
        found: list[Outcome] = []
        while not found or (len(found) < OUTCOMES_AT_ONCE and not self._outcomes.empty()):
            outcome = await self._outcomes.get()
            if isinstance(outcome, BaseException):
                if not found:
                    raise outcome
                self._outcomes.put_nowait(outcome)
                break
            found.append(outcome)
        return found

    def nudge(self) -> None:
        """Makes ``next_outcomes`` return, though nothing happened here."""
        self._outcomes.put_nowait(Nudged())

    def check(self) -> None:
        """The capacity rule."""
        if self.submitted != self.done + self.failed + self.returned + self.running:
            raise RuntimeError(
                f"pool out of balance: {self.submitted} submitted, {self.done} done, {self.failed} failed, "
                f"{self.returned} returned, {self.running} running"
            )

    def close(self) -> None:
        """Ends every evaluator, whatever it is doing."""
        for task in self._tasks:
            task.cancel()
        for worker in self._workers:
            ray.kill(worker.handle, no_restart=True)
        self._workers.clear()

    def _create(self) -> Any:
        plan = self._plan
        return create_evaluator(self._factory, cpus=plan.cpus, gpus=plan.gpus, threads=plan.threads)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # whatever it is, the one who waits for outcomes must hear of it
            self._outcomes.put_nowait(error)

    async def _fly(self, worker: _Worker, flight: _Flight, result: Any) -> None:
        try:
            evaluation = await result
        except DEATHS as error:
            self._note_death(worker, flight, error)
            worker.flights.remove(flight)
            self._suspects.add(flight.candidate.eval_id)
            self._settle(flight.candidate, f"its evaluator died ({first_line(error)})")
        except Exception as error:
            cause = original_error(error)
            worker.flights.remove(flight)
            if isinstance(cause, UniCuCoError):
                raise cause from None
            self._settle(flight.candidate, f"{type(cause).__name__}: {first_line(cause)}")
        else:
            worker.flights.remove(flight)
            self.done += 1
            self._suspects.discard(flight.candidate.eval_id)
            self._lost_in_a_row = 0
            self._outcomes.put_nowait(Measured(flight.candidate, evaluation))

    def _note_death(self, worker: _Worker, flight: _Flight, error: Exception) -> None:
        """The first call to fail in a life of the evaluator ends that life."""
        if flight.life != worker.life:
            return
        worker.life += 1
        worker.placed = worker.ready = False
        if isinstance(error, ActorDiedError):
            worker.handle = self._create()
        self._spawn(self._bring_up(worker))

    def _settle(self, candidate: Candidate, reason: str) -> None:
        """Sends a candidate back to the queue, or gives it up when it failed too often."""
        self._blame[candidate.eval_id] += 1
        if self._blame[candidate.eval_id] < self._attempts:
            self.returned += 1
            self._outcomes.put_nowait(Returned(candidate, reason))
            return
        self.failed += 1
        self._suspects.discard(candidate.eval_id)
        self._lost_in_a_row += 1
        self._outcomes.put_nowait(GivenUp(candidate, f"{reason}, {self._attempts} times"))
        if self._lost_in_a_row >= self._attempts:
            raise EvaluatorsLostError(
                f"{self._lost_in_a_row} candidates in a row failed {self._attempts} times each; the last one: {reason}."
            )

    async def _bring_up(self, worker: _Worker) -> None:
        """Waits until the evaluator has loaded its model, through restarts and replacements."""
        pause, longest = self.PING_SECONDS
        while True:
            try:
                await worker.handle.hello.remote()
                worker.placed = True
                await worker.handle.ready.remote()
                break
            except DEATHS as error:
                if worker.placed or isinstance(error, ActorDiedError):  # else: being restarted, or no node has room yet
                    self._count_lost_start(error)
                if isinstance(error, ActorDiedError):
                    worker.handle = self._create()
                worker.placed = False
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            except ActorUnschedulableError:
                # Ray can be set to refuse what the cluster cannot hold even at its largest. One evaluator too many, and
                # it refuses those too for which machines are on their way: so go on asking, as it does if not set.
                worker.handle = self._create()
                await asyncio.sleep(longest)
            except Exception as error:
                raise original_error(error) from None
        self._dead_while_loading = 0
        worker.ready = True
        self._outcomes.put_nowait(Joined())

    def _count_lost_start(self, error: Exception) -> None:
        self._dead_while_loading += 1
        failed = isinstance(error, RayActorError) and error.actor_init_failed
        if self._dead_while_loading >= self._attempts * self._plan.evaluators or failed:
            last = str(error).strip().splitlines()[-1] if failed else first_line(error)
            raise EvaluatorsLostError(
                f"Evaluators do not start: they died {self._dead_while_loading} times before the base model was "
                f"loaded; the last time: {last.strip().rstrip('.')}."
            ) from None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
