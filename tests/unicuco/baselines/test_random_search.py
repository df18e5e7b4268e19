"""Random search and what all rivals share: the book-keeping of a budget and answers from what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import make_space
from unicuco.baselines.measured import Measured, random_strategies, starts
from unicuco.baselines.oracle import BudgetSpentError
from unicuco.baselines.random_search import random_search
from unicuco.space import budgets_of

SIZES = (0.9, 0.7, 0.5)


@pytest.mark.parametrize("evaluations", [0, 1, 4.5, 40])
def test_uses_its_share_exactly(evaluations: float) -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 1000)
    answers = random_search(oracle, SIZES, evaluations, np.random.default_rng(0))
    assert oracle.spent == int(evaluations)
    assert answers.shape == (3, space.num_sites)
    for levels, kept in zip(answers, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)


def test_never_worse_than_uniform_and_better_with_budget_and_the_same_again() -> None:
    space = make_space(3)
    few, many, again = (
        random_search(MadeUpOracle(space, n), SIZES, n, np.random.default_rng(0)) for n in (10, 400, 400)
    )
    assert (many == again).all()
    oracle = MadeUpOracle(space, 0)
    for i, kept in enumerate(SIZES):
        alike = min(oracle.truth(levels) for levels in starts(space, kept))
        assert oracle.truth(many[i]) <= oracle.truth(few[i]) <= alike
    assert sum(map(oracle.truth, many)) < 0.9 * sum(map(oracle.truth, few))


def test_random_strategies_differ_and_fill_their_sizes() -> None:
    space = make_space(6)
    kept = np.array([0.9, 0.6, 0.6, 0.3])
    drawn = random_strategies(space, kept, np.random.default_rng(0))
    for levels, size in zip(drawn, kept, strict=True):
        assert_within_and_full(space, levels, float(size))
    assert (drawn[1] != drawn[2]).any()


def test_an_oracle_that_runs_dry_early() -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 5)
    answers = random_search(oracle, SIZES, 100, np.random.default_rng(0))
    assert oracle.spent == 5
    for levels, kept in zip(answers, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)


def test_measured_charges_windows_and_refuses_what_its_share_does_not_cover() -> None:
    space = make_space(3)
    oracle = MadeUpOracle(space, 100)
    measured = Measured(oracle, 2.0)
    levels = starts(space, 0.7)[0]
    assert measured.measure(levels, 2) == oracle.truth(levels, 2)
    assert oracle.spent == 0.25 and measured.left == 1.75 and not measured.knows(levels) and not measured.kl
    assert measured.measure(levels) == oracle.truth(levels)
    assert measured.knows(levels) and measured.whole_left == 0 and len(measured.kl) == 1
    with pytest.raises(BudgetSpentError):
        measured.measure(levels)
    assert oracle.spent == 1.25
    for _ in range(6):
        measured.measure(levels, 1)
    assert oracle.spent == 2.0 and measured.left == 0
    with pytest.raises(BudgetSpentError):
        measured.measure(levels, 1)
    assert Measured(MadeUpOracle(space, 3), 50).whole_left == 3


def test_answers_take_the_best_within_each_size_and_fill_it_up() -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 100)
    measured = Measured(oracle, 100)
    rng = np.random.default_rng(0)
    for levels in random_strategies(space, np.full(8, 0.6), rng):
        measured.measure(levels)
    at_60, at_80, at_40 = measured.answers(np.array([0.6, 0.8, 0.4]))
    assert (at_60 == measured.levels[int(np.argmin(measured.kl))]).all()
    # Nothing cheaper was measured within 0.8: the same strategy with levels given back to all sites alike.
    assert_within_and_full(space, at_80, 0.8)
    assert (at_80 <= at_60).all() and oracle.truth(at_80) < oracle.truth(at_60)
    assert (at_40 == starts(space, 0.4)[0]).all() and space.total(at_40) <= budgets_of(space, np.array(0.4))
