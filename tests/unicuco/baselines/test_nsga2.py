"""NSGA-II on made-up damages: exact budgets, answers for every size, better than chance."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import make_space
from unicuco.baselines.measured import starts
from unicuco.baselines.nsga2 import MARGIN, nsga2
from unicuco.baselines.random_search import random_search
from unicuco.errors import UniCuCoError
from unicuco.space import SearchSpace

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
SPACES = {"sublayer": make_space(6), "block": make_space(6, sites="block"), "depth": make_space(8, pruner="depth")}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("evaluations", [0, 1, 7.5, 60])
def test_uses_its_share_exactly_and_answers_every_size(space: SearchSpace, evaluations: float) -> None:
    oracle = MadeUpOracle(space, 1000)
    answers = nsga2(oracle, SIZES, evaluations, np.random.default_rng(0))
    assert oracle.spent == len(oracle.calls) == int(evaluations)
    assert answers.shape == (len(SIZES), space.num_sites)
    for levels, kept in zip(answers, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)


def test_measures_only_within_the_range_of_the_sizes() -> None:
    space = make_space(8)
    oracle = MadeUpOracle(space, 200)
    nsga2(oracle, (0.8, 0.6), 200, np.random.default_rng(0))
    sizes = space.kept(np.array([levels for levels, _ in oracle.calls]))
    largest = space.tables["params"][:, 0].max() / space.geometry.block_params  # projection may stop a level short
    assert sizes.max() <= 0.8 + MARGIN and sizes.min() >= 0.6 - MARGIN - largest
    assert len({levels.tobytes() for levels, _ in oracle.calls}) > 190


def test_beats_random_search_and_uniform_at_equal_budget() -> None:
    space = make_space(6)
    ratios = []
    for seed in range(3):
        oracles = [MadeUpOracle(space, 300, seed), MadeUpOracle(space, 300, seed)]
        found = nsga2(oracles[0], SIZES, 300, np.random.default_rng(seed))
        chance = random_search(oracles[1], SIZES, 300, np.random.default_rng(seed))
        ratios += [oracles[0].truth(a) / oracles[0].truth(b) for a, b in zip(found, chance, strict=True)]
        alike = [min(map(oracles[0].truth, starts(space, kept))) for kept in SIZES]
        assert np.mean([oracles[0].truth(a) / b for a, b in zip(found, alike, strict=True)]) < 0.92
    assert np.exp(np.mean(np.log(ratios))) < 0.88


def test_the_same_generator_gives_the_same_answers_whatever_the_global_state() -> None:
    space = make_space(6)
    answers = []
    for seed in (0, 1):
        np.random.seed(seed)
        answers.append(nsga2(MadeUpOracle(space, 60), SIZES, 60, np.random.default_rng(3)))
    assert (answers[0] == answers[1]).all()
    assert (answers[0] != nsga2(MadeUpOracle(space, 60), SIZES, 60, np.random.default_rng(4))).any()


def test_an_oracle_that_runs_dry_and_a_space_that_is_exhausted() -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 33.5)
    for levels, kept in zip(nsga2(oracle, SIZES, 500, np.random.default_rng(0)), SIZES, strict=True):
        assert_within_and_full(space, levels, kept)
    assert oracle.spent == 33
    tiny = make_space(2, pruner="depth", sites="block")  # four strategies
    answers = nsga2(MadeUpOracle(tiny, 300), (0.9, 0.5), 300, np.random.default_rng(0))
    assert (answers == 1).sum(axis=1).tolist() == [1, 1]


def test_says_what_is_missing_without_pymoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(UniCuCoError, match="needs pymoo"):
        nsga2(MadeUpOracle(make_space(3), 60), SIZES, 60, np.random.default_rng(0))
