"""The learner actor: the centre of a run. It owns the learner and the pool, and does three things side by side.

- dispatch: asks for candidates and hands them to the evaluators with room;
- ingest: tells the learner what came back; an evaluation is on disk before it counts;
- train: refits when the learner wants it, in the one worker thread, so that everything else goes on meanwhile.

The driver only calls ``progress`` and, at the end, ``finish``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from actors.evaluator import thread_settings
from actors.factory import Factory
from actors.learner_like import LearnerLike
from actors.metrics import RunMetrics
from actors.outcomes import GivenUp, Joined, Measured, Outcome, Returned
from actors.pool import EvaluatorPool, PoolSetup
from actors.run_log import RunLog
from unicuco.errors import UniCuCoError

if TYPE_CHECKING:
    from unicuco.evaluations import Candidate, Evaluation

T = TypeVar("T")
RESTARTS = 3
SWITCH_SECONDS = 5e-4
"""For how long a training may hold the interpreter while an ask or a tell waits. Each of the many small steps of these
gives it away and has to wait anew, with Python's own 5 ms a hundred times and more."""
PREDECESSOR_SECONDS = 60.0
"""How long to wait for the learner of a killed run to be gone."""


class LearnerStartError(UniCuCoError):
    """The run folder has another learner at work."""


@dataclass(frozen=True)
class Progress:
    """A run as the driver sees it.

    Attributes:
        status: the learner's own (``unicuco.learner.LearnerStatus``).
        evaluators: evaluators ready for work, of ``evaluators_wanted``; ``placed`` of them live, on some node.
        failures: ``(eval_id, reason)`` of every candidate given up since this actor started.
        returned: times that a candidate came back because its evaluator died.
    """

    status: Any
    evaluators: int
    evaluators_wanted: int
    placed: int
    training: bool
    finished: bool
    failures: tuple[tuple[str, str], ...]
    returned: int


class LearnerActor:
    """Async; see the module. State is touched in the event loop only, except for what ``train`` does in its thread.

    Ray may restart it: it starts again from the log, and the pool with it, at the next ``progress``.
    """

    POOL = EvaluatorPool

    def __init__(self, learner: Factory, pool: PoolSetup, policy: Path) -> None:
        self._factory, self._setup, self._policy = learner, pool, Path(policy)
        self._only_writer = FileLock(self._policy.parent / ".learner.lock")
        sys.setswitchinterval(SWITCH_SECONDS)
        self._trainer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="train")
        self._learner: LearnerLike | None = None
        self._pool = self.POOL(pool.factory, pool.plan, pool.in_flight, pool.attempts)
        self._run: asyncio.Task[None] | None = None
        self._building = asyncio.Lock()
        self._wake = asyncio.Condition()
        self._training = False
        self._failures: list[tuple[str, str]] = []
        self._metrics, self._log = RunMetrics(self._policy.parent.name), RunLog(self._policy.parent)

    async def progress(self) -> Progress:
        """How the run stands; the first call starts it.

        Raises:
            UniCuCoError: the run ended with it.
        """
        learner = await self._started()
        assert self._run is not None
        if self._run.done():
            self._run.result()
        return Progress(
            status=learner.status(),
            evaluators=self._pool.ready,
            evaluators_wanted=self._setup.plan.evaluators,
            placed=self._pool.placed,
            training=self._training,
            finished=self._run.done(),
            failures=tuple(self._failures),
            returned=self._pool.returned,
        )

    async def pid(self) -> int:
        """The process this actor lives in, for whoever watches it."""
        return os.getpid()

    async def status(self) -> Any:
        return (await self._built()).status()

    async def ask(self, n: int) -> list[Candidate]:
        """Candidates for an evaluator outside the pool, to be answered with ``tell``."""
        return (await self._built()).ask(n)

    async def tell(self, *evaluations: Evaluation) -> int:
        new = (await self._built()).tell(*evaluations)
        self._pool.nudge()  # whoever waits for the pool's next outcome looks at the learner again
        return new

    async def finish(self) -> Any:
        """Waits for the end of the run, writes the policy, ends the evaluators; returns the last status."""
        learner = await self._started()
        assert self._run is not None
        await self._run
        self._pool.close()
        await self._in_thread(lambda: learner.save_policy(self._policy))
        status = learner.status()
        self._metrics.stand(status, 0, False)
        self._log.write("ended", done=status.done, failed=status.failed, policy_version=status.version)
        return status

    async def stop(self) -> Any:
        """Ends evaluators and training at once; what was measured is on disk. Returns the last status, if any."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.wait([self._run])
        self._pool.close()
        await self._in_thread(lambda: None)  # a policy that is being written is written to its end
        return self._learner.status() if self._learner is not None else None

    async def _built(self) -> LearnerLike:
        async with self._building:
            if self._learner is None:
                self._learner = await self._in_thread(self._build)
            assert self._learner is not None
            return self._learner

    def _build(self) -> LearnerLike:
        # The learner of a driver that was killed lives on for a second or two, and writes.
        try:
            self._only_writer.acquire(timeout=PREDECESSOR_SECONDS)
        except Timeout as error:
            raise LearnerStartError(
                f"Another learner still writes to {self._policy.parent}; wait for it to end, or end it."
            ) from error
        return self._factory.build()

    async def _started(self) -> LearnerLike:
        learner = await self._built()
        if self._run is None:
            self._run = asyncio.create_task(self._run_to_end(learner))
        return learner

    async def _run_to_end(self, learner: LearnerLike) -> None:
        if not learner.finished():
            self._log.write("began", evaluators=self._setup.plan.evaluators, done=learner.status().done)
            self._pool.start()
        jobs = [asyncio.create_task(job(learner)) for job in (self._dispatch, self._ingest, self._train)]
        try:
            await asyncio.gather(*jobs)
        except Exception as error:
            self._log.write("failed", "error", error=f"{type(error).__name__}: {error}")
            raise
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            self._pool.close()

    async def _dispatch(self, learner: LearnerLike) -> None:
        async with self._wake:
            while not learner.finished():
                candidates = learner.ask(self._pool.free) if self._pool.free else []
                for candidate in candidates:
                    self._pool.submit(candidate)
                self._check(learner)
                await self._wake.wait()

    async def _ingest(self, learner: LearnerLike) -> None:
        while not learner.finished():
            self._take(learner, await self._pool.next_outcomes())
            await self._notify()
            await asyncio.sleep(0)  # more may be there already; who asks in between comes first

    def _take(self, learner: LearnerLike, outcomes: list[Outcome]) -> None:
        # Together: each write to disk is flushed, and many evaluators would have to wait for one another's.
        if measured := [outcome.evaluation for outcome in outcomes if isinstance(outcome, Measured)]:
            learner.tell(*measured)
        for outcome in outcomes:
            match outcome:
                case Measured():
                    self._metrics.measured(outcome.evaluation)
                case Returned():
                    learner.requeue(outcome.candidate)
                    self._metrics.returned()
                    self._log.write("returned", "warning", eval_id=outcome.candidate.eval_id, reason=outcome.reason)
                case GivenUp():
                    learner.give_up(outcome.candidate, outcome.reason)
                    self._failures.append((outcome.candidate.eval_id, outcome.reason))
                    self._metrics.given_up()
                    self._log.write("given_up", "error", eval_id=outcome.candidate.eval_id, reason=outcome.reason)
                case Joined():
                    self._log.write("evaluator_ready", evaluators=self._pool.ready)

    async def _train(self, learner: LearnerLike) -> None:
        while True:
            async with self._wake:
                await self._wake.wait_for(lambda: learner.needs_training() or learner.finished())
            if not learner.needs_training():
                return
            self._training = True
            try:
                await self._in_thread(lambda: self._train_and_save(learner))
            finally:
                self._training = False
            self._pool.nudge()  # the run may be over now; who waits for an outcome must look
            await self._notify()

    def _train_and_save(self, learner: LearnerLike) -> None:
        began = time.perf_counter()
        learner.train()
        learner.save_policy(self._policy)
        status, took = learner.status(), time.perf_counter() - began
        self._log.write("trained", policy_version=status.version, done=status.done, seconds=round(took, 3))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._trainer, work)

    async def _notify(self) -> None:
        async with self._wake:
            self._wake.notify_all()

    def _check(self, learner: LearnerLike) -> None:
        """The capacity rule on both sides, and that a run which is not over has something under way."""
        self._pool.check()
        status = learner.status()
        if status.submitted != status.done + status.failed + status.running:
            raise RuntimeError(f"learner out of balance: {status}")
        self._metrics.stand(status, self._pool.ready, self._training)
        idle = self._pool.free and not self._pool.running and not self._training
        if idle and not learner.needs_training() and not status.running:
            raise RuntimeError(
                f"the learner has nothing to evaluate and nothing to train, yet is not finished: {status}"
            )


def create_learner(
    learner: Factory, pool: PoolSetup, policy: Path, threads: int = 1, actor: type[LearnerActor] = LearnerActor
) -> Any:
    """A learner actor on this node (its handle): the run folder is here.

    It takes no processor away from the evaluators, and Ray restarts it a few times should it die.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(actor)
        .options(
            num_cpus=0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            scheduling_strategy=here,
            runtime_env={"env_vars": thread_settings(threads)},
        )
        .remote(learner, pool, policy)
    )
