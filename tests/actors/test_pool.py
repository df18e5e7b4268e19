"""The pool on a real Ray: evaluators are killed, and every candidate still comes back as exactly one outcome."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from actors.factory import Factory
from actors.outcomes import GivenUp, Joined, Measured, Returned
from actors.placement import PoolPlan
from actors.pool import OUTCOMES_AT_ONCE, EvaluatorPool, EvaluatorsLostError
from unicuco.errors import ModelError
from unicuco.evaluations import Candidate

pytestmark = pytest.mark.ray
PLAN = PoolPlan(evaluators=2, cpus=1, gpus=0, threads=1)


def candidates(count: int, origin: str = "uniform") -> list[Candidate]:
    return [Candidate(f"{origin}{i}", (i, 2), origin) for i in range(count)]


def run_pool(work: Callable[[EvaluatorPool], Awaitable[None]], plan: PoolPlan = PLAN, **arguments: object) -> None:
    async def main() -> None:
        pool = EvaluatorPool(Factory("tests.actors.standins:QuadraticEvaluator", arguments), plan)
        pool.start()
        try:
            await asyncio.wait_for(work(pool), timeout=60)
        finally:
            pool.close()

    asyncio.run(main())


async def drain(pool: EvaluatorPool, queue: list[Candidate]) -> tuple[list[Measured], list[GivenUp], int]:
    """Works off ``queue`` as the learner does; checks the capacity rule after every event."""
    measured: list[Measured] = []
    given_up: list[GivenUp] = []
    returned = 0
    wanted = len(queue)
    while len(measured) + len(given_up) < wanted:
        while queue and pool.free:
            pool.submit(queue.pop(0))
            pool.check()
        assert pool.running <= 4
        for happened in await pool.next_outcomes():
            match happened:
                case Measured() as outcome:
                    measured.append(outcome)
                case GivenUp() as outcome:
                    given_up.append(outcome)
                case Returned(candidate=candidate):
                    queue.insert(0, candidate)
                    returned += 1
                case Joined():
                    pass
        pool.check()
    return measured, given_up, returned


def test_killed_evaluator_is_absorbed_and_its_work_done_once(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        queue = candidates(12)
        waiting = asyncio.create_task(drain(pool, queue))
        while not (notes := list(tmp_path.iterdir())):
            await asyncio.sleep(0.02)
        victim = int(notes[0].name.split(".")[1])
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        measured, given_up, returned = await waiting
        assert time.monotonic() - killed < 30
        assert sorted(m.evaluation.eval_id for m in measured) == sorted(c.eval_id for c in candidates(12))
        assert not given_up
        assert 1 <= returned <= 2  # the one that ran, and the one queued behind it
        assert pool.ready >= 1
        assert (pool.submitted, pool.done, pool.failed) == (12 + returned, 12, 0)

    run_pool(work, notes=tmp_path, seconds=0.3)


def test_poison_is_given_up_after_three_deaths_and_the_innocent_are_measured(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        queue = [*candidates(1, "poison"), *candidates(6)]
        measured, given_up, _ = await drain(pool, queue)
        assert [outcome.candidate.eval_id for outcome in given_up] == ["poison0"]
        assert "died" in given_up[0].reason
        assert len({m.evaluation.eval_id for m in measured}) == len(measured) == 6
        tries = Counter(path.name.split(".")[0] for path in tmp_path.iterdir())
        assert tries["poison0"] == 3

    run_pool(work, notes=tmp_path, seconds=0.05)


def test_an_evaluation_that_raises_is_given_up_with_its_reason(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        measured, given_up, returned = await drain(pool, [*candidates(1, "broken"), *candidates(2)])
        assert [g.reason for g in given_up] == ["ValueError: no such thing, 3 times"]
        assert len(measured) == 2 and returned == 2
        with pytest.raises(EvaluatorsLostError, match="3 candidates in a row failed 3 times each"):
            await drain(pool, [Candidate(f"bad{i}", (i, 2), "broken") for i in range(4)])

    run_pool(work, notes=tmp_path)


def test_a_missing_model_ends_the_run_with_one_sentence(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        with pytest.raises(ModelError) as caught:
            await pool.next_outcomes()
        assert str(caught.value) == "No folder at /nowhere."

    run_pool(work, PoolPlan(1, 1, 0, 1), notes=tmp_path, missing_model=True)


def test_work_goes_to_the_least_loaded(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        while pool.ready < 2:
            await pool.next_outcomes()
        assert pool.free == 4
        for candidate in candidates(2):
            pool.submit(candidate)
        assert pool.free == 2 and pool.running == 2
        while pool.done < 2:
            await pool.next_outcomes()
        assert len({path.name.split(".")[1] for path in tmp_path.iterdir()}) == 2
        for candidate in candidates(4):
            pool.submit(candidate)
        with pytest.raises(RuntimeError, match="without room"):
            pool.submit(candidates(1)[0])

    run_pool(work, notes=tmp_path, seconds=0.2)


def test_what_has_happened_meanwhile_comes_together(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        while pool.ready < 2:
            await pool.next_outcomes()
        for candidate in candidates(4):
            pool.submit(candidate)
        while pool.done < 4:
            await asyncio.sleep(0.05)
        found = await pool.next_outcomes()
        assert {outcome.candidate.eval_id for outcome in found if isinstance(outcome, Measured)} == {
            candidate.eval_id for candidate in candidates(4)
        }

    run_pool(work, notes=tmp_path)


def test_a_batch_of_outcomes_is_bounded(ray_session: None, tmp_path: Path) -> None:
    async def work(pool: EvaluatorPool) -> None:
        while pool.ready < 2:
            await pool.next_outcomes()
        for _ in range(2 * OUTCOMES_AT_ONCE + 1):
            pool.nudge()
        assert [len(await pool.next_outcomes()) for _ in range(3)] == [OUTCOMES_AT_ONCE, OUTCOMES_AT_ONCE, 1]

    run_pool(work, notes=tmp_path)
