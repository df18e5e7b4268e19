"""Two hundred evaluators killed at random moments, simulated: nothing is lost and nothing counts twice.

The learner actor, the pool and the log are the real ones; evaluators are objects that answer as Ray's handles do, in
one event loop, so that hundreds of deaths take seconds and the seed decides when each comes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.factory import Factory
from actors.learner import LearnerActor
from actors.placement import PoolPlan
from actors.pool import EvaluatorPool, PoolSetup
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog

KILLS = 200
UNAVAILABLE = ActorUnavailableError("killed", None)


class Method:
    """``handle.method.remote(...)``: the call begins at once, as with Ray."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(self._call(*arguments))


class MortalEvaluator:
    """Runs calls in order; ``die`` fails every call it has, and for a while those that come."""

    def __init__(self, pool: MortalPool) -> None:
        self._pool, self._turn, self.gone = pool, asyncio.Lock(), False
        self._death: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.hello, self.ready, self.evaluate = Method(self._hello), Method(self._hello), Method(self._evaluate)

    def die(self, for_good: bool) -> None:
        self.gone = for_good
        self._death.set_result(ActorDiedError() if for_good else UNAVAILABLE)
        self._death = asyncio.get_running_loop().create_future()
        if for_good:
            self._death.set_result(ActorDiedError())
        self._turn = asyncio.Lock()

    async def _hello(self) -> None:
        await self._or_death(self._pause(0.001))

    async def _evaluate(self, candidate: Candidate) -> Evaluation:
        async def work() -> None:
            async with self._turn:
                self._pool.worked_on.append(candidate.eval_id)
                await self._pause(0.004)

        await self._or_death(work())
        return _evaluation(candidate)

    async def _pause(self, most: float) -> None:
        await asyncio.sleep(self._pool.rng.uniform(0, most))

    async def _or_death(self, work: Coroutine[Any, Any, None]) -> None:
        death, task = self._death, asyncio.get_running_loop().create_task(work)
        await asyncio.wait([death, task], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise death.result()


class MortalPool(EvaluatorPool):
    """A pool whose evaluators die at random: each time one of ``KILLS`` is due."""

    PING_SECONDS = (0.001, 0.01)
    seed = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rng, self.kills = random.Random(self.seed), 0
        self.worked_on: list[str] = []
        self.replaced = 0
        self._alive: list[MortalEvaluator] = []

    def start(self) -> None:
        super().start()
        self._spawn(self._kill_at_random())

    def _create(self) -> MortalEvaluator:
        self.replaced += 1
        self._alive.append(MortalEvaluator(self))
        return self._alive[-1]

    async def _kill_at_random(self) -> None:
        while self.kills < KILLS:
            await asyncio.sleep(self.rng.uniform(0, 0.006))
            busy = [
                worker.handle for worker in self._workers if worker.ready and worker.flights and not worker.handle.gone
            ]
            if busy:
                self.kills += 1
                self.rng.choice(busy).die(for_good=self.rng.random() < 0.3)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._workers.clear()


class MortalActor(LearnerActor):
    POOL = MortalPool


def _evaluation(candidate: Candidate) -> Evaluation:
    damage = float(sum(candidate.levels))
    return Evaluation(
        candidate.eval_id, candidate.levels, candidate.origin, 100, 0.5, damage, damage, 2.0, ("text",), (damage,),
        64, 64.0, 0.001, "float32", "cpu", 1, 0, "p", "w",
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_and_nothing_counts_twice(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MortalPool, "seed", seed)
    budget = 900
    learner = Factory(
        "tests.actors.standins:CountingLearner",
        {"evaluations": tmp_path / "evaluations", "budget": budget, "every": 50},
    )
    # Two of three attempts may be bad luck here; what is tested is the counting, not when to give up.
    setup = PoolSetup(Factory("unused:unused"), PoolPlan(6, 0, 0, 1), in_flight=2, attempts=50)

    async def run() -> tuple[Any, MortalPool]:
        actor = MortalActor(learner, setup, tmp_path / "policy")
        pool = actor._pool
        assert isinstance(pool, MortalPool)
        while not (progress := await actor.progress()).finished:
            status = progress.status
            assert status.submitted == status.done + status.failed + status.running
            pool.check()
            await asyncio.sleep(0.01)
        return await actor.finish(), pool

    status, pool = asyncio.run(asyncio.wait_for(run(), 120))
    found = EvaluationLog(tmp_path / "evaluations").read()
    assert [status.done, status.failed, status.running] == [budget, 0, 0]
    assert sorted(e.eval_id for e in found) == sorted(f"e{i}" for i in range(budget)), "each exactly once on disk"
    assert pool.kills == KILLS and pool.replaced > 6, "some came back, some had to be replaced"
    assert pool.returned > 0 and len(pool.worked_on) >= budget + pool.returned - 2 * pool.kills
    assert pool.submitted == pool.done + pool.returned
