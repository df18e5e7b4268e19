"""Evolution on made-up damages: the budget to the last window, full answers, and better the longer it runs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import make_space
from unicuco.baselines.evolution import EvolutionConfig, evolution, mutate
from unicuco.baselines.measured import starts
from unicuco.space import SearchSpace, budgets_of

SPACES = {
    "sublayer": make_space(8),
    "block": make_space(8, sites="block"),
    "depth": make_space(12, pruner="depth"),
}


def uniform_kl(oracle: MadeUpOracle, kept: float) -> float:
    return min(oracle.truth(levels) for levels in starts(oracle.space, kept))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("evaluations", [0, 0.5, 1, 2, 7.3, 60])
def test_never_over_its_share_and_always_an_answer(space: SearchSpace, evaluations: float) -> None:
    for kept in (0.85, 0.5):
        oracle = MadeUpOracle(space, 1000)
        levels = evolution(oracle, kept, evaluations, np.random.default_rng(0))
        assert_within_and_full(space, levels, kept)
        charged = sum(windows for _, windows in oracle.calls) / oracle.num_windows
        assert charged == pytest.approx(oracle.spent) and oracle.spent <= evaluations + 1e-9
        assert oracle.spent > evaluations - 1  # nothing of the budget is left lying


def test_every_child_is_within_and_full_and_differs_from_its_parent() -> None:
    for space in SPACES.values():
        rng = np.random.default_rng(1)
        for kept in (0.9, 0.6):
            parent = starts(space, kept)[0]
            budget = float(budgets_of(space, np.array(kept)))
            children = [mutate(space, parent, budget, rng, EvolutionConfig()) for _ in range(100)]
            for child in children:
                assert_within_and_full(space, child, kept)
            assert np.mean([(child != parent).any() for child in children]) > 0.7
            single = [mutate(space, parent, budget, rng, EvolutionConfig(max_switches=1)) for _ in range(100)]
            many = [mutate(space, parent, budget, rng, EvolutionConfig(max_switches=6)) for _ in range(100)]
            assert np.mean([(c != parent).sum() for c in single]) < np.mean([(c != parent).sum() for c in many])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_better_than_uniform_and_better_with_more_budget(seed: int) -> None:
    space = make_space(12)
    reached = []
    for evaluations in (60, 300):
        oracle = MadeUpOracle(space, evaluations, seed)
        levels = evolution(oracle, 0.7, evaluations, np.random.default_rng(seed))
        reached.append(oracle.truth(levels) / uniform_kl(oracle, 0.7))
    assert reached[0] < 0.85 and reached[1] < 0.95 * reached[0]


def test_depth_finds_the_best_drops() -> None:
    space = make_space(4, pruner="depth", sites="block")
    for seed in range(3):
        oracle = MadeUpOracle(space, 60, seed)
        every = np.array([[i >> b & 1 for b in range(4)] for i in range(16)])
        fits = every[space.total(every) <= budgets_of(space, np.array(0.5))]
        best = min(oracle.truth(levels) for levels in fits)
        assert oracle.truth(evolution(oracle, 0.5, 60, np.random.default_rng(seed))) == pytest.approx(best)


def test_never_worse_than_the_better_start_and_elitist() -> None:
    space = make_space(6)
    for evaluations in (2, 5, 10):
        oracle = MadeUpOracle(space, 100, 5)
        levels = evolution(oracle, 0.6, evaluations, np.random.default_rng(0))
        whole = [oracle.truth(asked) for asked, windows in oracle.calls if windows == oracle.num_windows]
        assert oracle.truth(levels) == min(whole) <= uniform_kl(oracle, 0.6)


def test_selection_uses_more_windows_on_fewer_children() -> None:
    oracle = MadeUpOracle(make_space(8), 60)
    evolution(oracle, 0.7, 60, np.random.default_rng(0), EvolutionConfig(offspring=8))
    asked = [windows for _, windows in oracle.calls]
    assert asked[:2] == [8, 8]  # both uniform starts
    assert asked[2:13] == [2] * 8 + [4] * 2 + [8]  # one generation: a quarter, half, all of 8 windows


def test_an_oracle_that_runs_dry_early_leaves_what_was_found() -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 9.5)
    levels = evolution(oracle, 0.7, 1000, np.random.default_rng(0))
    assert oracle.spent <= 9.5
    assert_within_and_full(space, levels, 0.7)
    assert oracle.truth(levels) <= uniform_kl(oracle, 0.7)


def test_one_window_and_the_same_generator_state() -> None:
    space = make_space(6)
    answers = []
    for _ in range(2):
        oracle = MadeUpOracle(space, 40, num_windows=1)
        answers.append(evolution(oracle, 0.7, 40, np.random.default_rng(4)))
        assert oracle.spent == 40
    assert (answers[0] == answers[1]).all()
    other = evolution(MadeUpOracle(space, 40, num_windows=1), 0.7, 40, np.random.default_rng(5))
    assert (other != answers[0]).any()
