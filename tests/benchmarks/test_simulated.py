"""Simulated evaluators: what they answer is the oracle's, in as long as they say, and the real pool runs over them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.factory import Factory
from actors.outcomes import Measured
from actors.placement import PoolPlan
from benchmarks.simulated import NOISE, EvaluatorGroup, GroupedPool, Oracle, SimulatedEvaluator
from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from unicuco.evaluations import Candidate
from unicuco.policy import Policy

SPACE = make_space(5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = KnownDamage(SPACE, seed=4)
    return search(make_learner(tmp_path_factory.mktemp("log"), model, evaluations=24), model).policy()


@pytest.fixture(scope="module")
def oracle(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oracle") / "oracle.json"
    Oracle.of(policy).save(path)
    return path


def candidates(count: int, margin_group: int = -1) -> list[Candidate]:
    levels = np.random.default_rng(0).integers(0, SPACE.num_levels, (count, SPACE.num_sites))
    return [
        Candidate(f"{i:06d}", tuple(row.tolist()), "drawn", margin_group=margin_group) for i, row in enumerate(levels)
    ]


def test_it_answers_what_the_recorded_run_has_learned(policy: Policy, oracle: Path) -> None:
    model, asked = policy.parts.surrogate.damage_model, candidates(40)
    assert model is not None
    levels = np.array([candidate.levels for candidate in asked])
    with torch.no_grad():
        expected = model.log_kl(torch.as_tensor(SPACE.sparsities(levels))).numpy()
    found = [Oracle.load(oracle).evaluation(candidate, 1.0) for candidate in asked]
    gaps = np.log([e.kl for e in found]) - expected
    assert np.abs(gaps).max() < 5 * NOISE and gaps.std() > NOISE / 3
    assert [e.params for e in found] == SPACE.total(levels).tolist()
    assert [e.kept for e in found] == pytest.approx(SPACE.kept(levels).tolist())
    again = [Oracle.load(oracle).evaluation(candidate, 1.0).kl for candidate in asked]
    assert again == [e.kl for e in found], "the noise belongs to the candidate"


def test_margins_say_what_giving_back_saves(oracle: Path) -> None:
    (candidate,) = candidates(1, margin_group=0)
    found = Oracle.load(oracle).evaluation(candidate, 1.0)
    margins = np.array(found.margins).reshape(SPACE.num_sites, -1)
    assert found.cost == 4 * found.tokens and (margins <= 0).all() and margins.min() < 0
    assert (margins[np.arange(SPACE.num_sites), list(candidate.levels)] == 0).all()


def test_an_evaluator_takes_its_time_and_needs_no_torch(oracle: Path) -> None:
    began = time.perf_counter()
    found = SimulatedEvaluator(oracle, 0.2).evaluate(candidates(1)[0])
    assert 0.2 <= found.seconds <= time.perf_counter() - began
    code = "import sys, benchmarks.simulated; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_group_works_side_by_side_but_each_member_in_turn(oracle: Path) -> None:
    async def both() -> tuple[float, float]:
        group, asked = EvaluatorGroup(oracle, 0.2, 2), candidates(2)
        times = []
        for members in ((0, 1), (0, 0)):
            began = time.perf_counter()
            await asyncio.gather(*(group.evaluate(m, c) for m, c in zip(members, asked, strict=True)))
            times.append(time.perf_counter() - began)
        return times[0], times[1]

    side_by_side, in_turn = asyncio.run(both())
    assert side_by_side < 0.35 and in_turn >= 0.4


def test_the_pool_runs_over_groups(ray_session: None, oracle: Path) -> None:
    factory = Factory("benchmarks.simulated:EvaluatorGroup", {"oracle": oracle, "seconds": 0.05, "count": 2})

    async def work() -> set[str]:
        pool = GroupedPool(factory, PoolPlan(4, 0, 0, 1))
        pool.start()
        try:
            while pool.ready < 4:
                await pool.next_outcomes()
            assert len(pool._groups) == 2
            asked, done = candidates(20), set[str]()
            while len(done) < 20:
                while asked and pool.free:
                    pool.submit(asked.pop())
                pool.check()
                done |= {o.candidate.eval_id for o in await pool.next_outcomes() if isinstance(o, Measured)}
            return done
        finally:
            pool.close()

    assert asyncio.run(work()) == {candidate.eval_id for candidate in candidates(20)}
