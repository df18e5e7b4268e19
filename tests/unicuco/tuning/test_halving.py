"""Who goes on, and who wins: on made-up scores whose best is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from unicuco.errors import TuningError
from unicuco.tuning.halving import DEFAULT, FINALS, WORTH, Halving
from unicuco.tuning.study import Job, Score

COUNT, FINALISTS, SEEDS = 24, 2, 4
Judge = Callable[[Job], Score]


def score(front: float, density: float = 1.0, error: str = "") -> Score:
    later = tuple(density + 0.1 * np.sin(np.arange(40)))
    return Score.failed(error) if error else Score(front, density, later=later)


def noise(job: Job, size: float) -> float:
    return float(np.random.default_rng([job.setting, job.rung, job.seed]).normal(0, size))


def run(halving: Halving, judge: Judge, workers: int = 2, order: int = 0) -> Halving:
    """Works off all jobs with ``workers`` at a time, which end in an order of chance."""
    rng, running = random.Random(order), []
    while not halving.finished:
        while len(running) < workers and (job := halving.next()) is not None:
            running.append(job)
        job = running.pop(rng.randrange(len(running)))
        halving.tell(job, judge(job))
    assert not running
    return halving


def make() -> Halving:
    return Halving(COUNT, FINALISTS, SEEDS, seed=0)


def test_the_best_setting_wins_against_the_default_on_the_same_seeds() -> None:
    halving = run(make(), lambda job: score(-1 - 0.05 * (job.setting == 17) + noise(job, 0.005)))
    assert halving.winner() == 17 and halving.total == len(halving.scores)
    finals = [job for job in halving.scores if job.rung == FINALS]
    assert {job.setting for job in finals} >= {DEFAULT, 17} and len({job.setting for job in finals}) == FINALISTS + 1
    by_setting = {s: {job.seed for job in finals if job.setting == s} for s in {job.setting for job in finals}}
    assert len({tuple(sorted(seeds)) for seeds in by_setting.values()}) == 1
    before = {job.seed for job in halving.scores if job.rung < FINALS}
    assert not before & by_setting[DEFAULT]  # what was chosen by luck is judged anew


def test_most_settings_cost_little() -> None:
    halving = run(make(), lambda job: score(noise(job, 0.01)))
    per_rung = [sum(job.rung == rung for job in halving.scores) for rung in range(FINALS + 1)]
    assert per_rung == [COUNT, (FINALISTS + 1) * SEEDS]


def test_a_gain_within_the_noise_keeps_the_default() -> None:
    """Sixty sweeps of settings that are all alike: now and then chance may look like a gain, for one in ten at most."""

    def winner(sweep: int) -> int:
        def judge(job: Job) -> Score:
            rng = np.random.default_rng([sweep, job.setting, job.rung, job.seed])
            return score(float(rng.normal(0, 0.02)))

        return run(make(), judge).winner()

    assert sum(winner(sweep) != DEFAULT for sweep in range(60)) <= 6


def test_a_gain_that_no_run_could_tell_keeps_the_default() -> None:
    def judge(gain: float) -> Judge:
        return lambda job: score(-1 - gain * (job.setting == 5) + noise(job, 1e-6))

    assert run(make(), judge(0.5 * WORTH)).winner() == DEFAULT
    assert run(make(), judge(2 * WORTH)).winner() == 5


def test_a_front_of_a_surrogate_that_predicts_worse_does_not_count() -> None:
    """The oracle is its kin; what was measured is not."""
    halving = run(make(), lambda job: score(-2.0 if job.setting == 9 else -1.0, 0.8 if job.setting == 9 else 1.0))
    assert halving.winner() == DEFAULT
    assert all(standing.setting != 9 for standing in halving.standings())
    blind = run(make(), lambda job: score(-2.0 if job.setting == 9 else -1.0))
    assert blind.winner() == 9


def test_what_is_found_does_not_depend_on_who_was_faster() -> None:
    def judge(job: Job) -> Score:
        return score(noise(job, 0.02), error="broke" if job.setting == 3 else "")

    one = run(make(), judge, workers=1)
    for workers, order in ((2, 1), (5, 2), (40, 3)):
        other = run(make(), judge, workers, order)
        assert set(other.scores) == set(one.scores) and other.standings() == one.standings()


def test_broken_settings_go_no_further_and_are_reported() -> None:
    halving = run(make(), lambda job: score(-1.0, error="broke" if job.setting in (4, 8) else ""))
    assert {job.setting for job in halving.failures} == {4, 8}
    assert all(job.rung == 0 for job in halving.failures)


def test_a_finalist_that_breaks_on_one_seed_does_not_win() -> None:
    def judge(job: Job) -> Score:
        best = job.setting == 6
        return score(-2.0 if best else -1.0, error="broke" if best and job.seed == 3 else "")

    halving = run(make(), judge)
    assert halving.winner() == DEFAULT and 6 not in {standing.setting for standing in halving.standings()}


def test_where_all_others_break_the_default_stays() -> None:
    halving = run(make(), lambda job: score(-1.0, error="" if job.setting == DEFAULT else "broke"))
    assert halving.winner() == DEFAULT and halving.standings() == []


def test_a_default_that_breaks_ends_the_sweep() -> None:
    with pytest.raises(TuningError, match="own settings fail on its log: broke"):
        run(make(), lambda job: score(-1.0, error="broke" if job.setting == DEFAULT else ""))


def test_two_settings_are_a_sweep() -> None:
    halving = run(Halving(2, FINALISTS, SEEDS, seed=0), lambda job: score(-1.0 - job.setting + noise(job, 0.01)))
    assert halving.winner() == 1 and len(halving.scores) == halving.total == 2 + 2 * SEEDS
