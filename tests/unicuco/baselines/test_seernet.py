"""SeerNet on made-up damages: the descent stays on its plane, budgets are exact, answers beat chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import make_space
from unicuco.baselines.measured import random_strategies, starts
from unicuco.baselines.random_search import random_search
from unicuco.baselines.seernet import SeerNetConfig, _descend, seernet
from unicuco.objectives import site_shares
from unicuco.surrogate import Surrogate, SurrogateConfig

FAST = SeerNetConfig(rounds=4, steps=25)


@pytest.mark.parametrize("evaluations", [0, 1, 2, 3.5, 20])
@pytest.mark.parametrize("sites", ["sublayer", "block"])
def test_uses_its_share_exactly(evaluations: float, sites: str) -> None:
    space = make_space(4, sites=sites)
    oracle = MadeUpOracle(space, 1000)
    levels = seernet(oracle, 0.7, evaluations, np.random.default_rng(0), FAST)
    assert oracle.spent == len(oracle.calls) == int(evaluations)
    assert_within_and_full(space, levels, 0.7)
    if evaluations >= 2:
        assert oracle.truth(levels) == min(oracle.truth(asked) for asked, _ in oracle.calls)


def test_depth_and_a_space_that_is_exhausted() -> None:
    space = make_space(2, pruner="depth")
    oracle = MadeUpOracle(space, 30)
    levels = seernet(oracle, 0.5, 30, np.random.default_rng(0), FAST)
    assert oracle.spent == 30
    assert_within_and_full(space, levels, 0.5)


def test_descent_lowers_the_prediction_at_the_size_asked_for() -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 1000)
    rng = np.random.default_rng(0)
    known = random_strategies(space, np.linspace(0.5, 0.9, 40), rng)
    surrogate = Surrogate(space, None, SurrogateConfig(mean="plain"))
    surrogate.fit(known, np.array([oracle.truth(levels) for levels in known]))
    first = space.sparsities(random_strategies(space, np.full(6, 0.7), rng))
    last = _descend(surrogate, space, first, 0.7, SeerNetConfig())
    assert last.min() >= 0 and last.max() <= 1
    assert 1 - last @ site_shares(space) == pytest.approx(np.full(6, 0.7), abs=1e-6)
    with torch.no_grad():
        before, after = (surrogate.predict(torch.as_tensor(x))[0].numpy() for x in (first, last))
    assert (after < before - 0.1).all()


def test_beats_random_search_and_uniform_and_is_the_same_again() -> None:
    space = make_space(6)
    for seed in range(2):
        oracle, other, third = (MadeUpOracle(space, 60, seed) for _ in range(3))
        levels = seernet(oracle, 0.7, 60, np.random.default_rng(seed), SeerNetConfig(rounds=10))
        chance = random_search(other, [0.7], 60, np.random.default_rng(seed))[0]
        assert oracle.truth(levels) < 0.9 * oracle.truth(chance)
        assert oracle.truth(levels) < 0.9 * min(map(oracle.truth, starts(space, 0.7)))
        if seed == 0:
            again = seernet(third, 0.7, 60, np.random.default_rng(seed), SeerNetConfig(rounds=10))
            assert (again == levels).all()


def test_an_oracle_that_runs_dry_early() -> None:
    space = make_space(4)
    oracle = MadeUpOracle(space, 11.5)
    levels = seernet(oracle, 0.6, 300, np.random.default_rng(0), FAST)
    assert oracle.spent == 11
    assert_within_and_full(space, levels, 0.6)
