"""The oracle on a real evaluator: what is cached is the same, costs the same, and survives a new process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unicuco import tiny
from unicuco.baselines.cached import CachedOracle, EvaluationCache
from unicuco.baselines.evolution import evolution
from unicuco.baselines.oracle import BudgetSpentError
from unicuco.baselines.uniform import uniform
from unicuco.calibration import Windows
from unicuco.evaluations import Candidate
from unicuco.evaluator import Evaluator
from unicuco.preparation import Preparation


@pytest.fixture(scope="module")
def evaluator(model_folder: Callable[[str], Path], prepared: Callable[..., Preparation]) -> Evaluator:
    return Evaluator(str(model_folder("llama")), prepared("llama").folder, tiny.FLOAT32)


def test_what_was_measured_once_is_read_from_disk(evaluator: Evaluator, tmp_path: Path) -> None:
    levels = uniform(evaluator.space, 0.7, False)
    first = EvaluationCache(evaluator, tmp_path)
    kl = [first.kl(levels), first.kl(levels)]
    again = EvaluationCache(evaluator, tmp_path)
    assert [*kl, again.kl(levels)] == [evaluator.measure(evaluator.space.shape(levels)).kl] * 3
    assert (first.hits, first.misses, again.hits, again.misses) == (1, 1, 1, 0)


def test_other_windows_and_margins_are_other_evaluations(evaluator: Evaluator, tmp_path: Path) -> None:
    cache = EvaluationCache(evaluator, tmp_path)
    levels = tuple(int(v) for v in uniform(evaluator.space, 0.7, False))
    plain = cache.evaluate(Candidate("7", levels, "knapsack"))
    assert (plain.eval_id, plain.origin, plain.margins) == ("7", "knapsack", ())
    both = cache.evaluate(Candidate("8", levels, "stratnet", margin_group=1))
    assert both.kl == plain.kl and both.margin_group == 1 and len(both.margins) == evaluator.space.levels.size
    elsewhere = evaluator.on(evaluator.preparation.margin_windows(0))
    assert cache.evaluate(Candidate("9", levels, "x"), elsewhere).kl != plain.kl
    assert cache.misses == 3


def test_a_cached_evaluation_costs_the_budget_all_the_same(evaluator: Evaluator, tmp_path: Path) -> None:
    cache = EvaluationCache(evaluator, tmp_path)
    levels = uniform(evaluator.space, 0.7, False)
    for _ in range(2):
        oracle = CachedOracle(cache, 2.25)
        oracle.kl(levels)
        oracle.kl(levels, windows=1)
        assert oracle.left == pytest.approx(1.0)
        oracle.kl(levels, windows=oracle.num_windows)
        with pytest.raises(BudgetSpentError):
            oracle.kl(levels, windows=1)
    assert cache.misses == 2


def test_fewer_windows_are_the_first_ones(evaluator: Evaluator, tmp_path: Path) -> None:
    oracle = CachedOracle(EvaluationCache(evaluator, tmp_path), 10)
    levels = uniform(evaluator.space, 0.6, True)
    found, windows = oracle.kl(levels, windows=2), evaluator.windows
    first = Windows(windows.tokens[:2], windows.domain[:2], windows.domains)
    assert found == pytest.approx(evaluator.on(first).measure(evaluator.space.shape(levels)).kl, rel=1e-6)


def test_a_rival_runs_on_it_and_repeats_itself_from_disk(evaluator: Evaluator, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        cache = EvaluationCache(evaluator, tmp_path)
        found.append(evolution(CachedOracle(cache, 30), 0.6, 30, np.random.default_rng(0)))
    assert (found[0] == found[1]).all() and cache.misses == 0 and cache.hits > 20
    start = uniform(evaluator.space, 0.6, True)
    better, worse = (evaluator.measure(evaluator.space.shape(x)).kl for x in (found[0], start))
    assert better <= worse
