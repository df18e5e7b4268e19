"""Bayesian optimisation on made-up damages: exact budgets, answers for every size, better than chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import geometry, make_space
from unicuco.baselines.bayesian import MARGIN, BayesianConfig, SizeAndQuality, bayesian
from unicuco.baselines.measured import starts
from unicuco.baselines.random_search import random_search
from unicuco.space import SearchSpace, SpaceConfig

SIZES = (0.9, 0.7, 0.5)
FAST = BayesianConfig(fit_steps=20, samples=16, pool=48, steps=5)


@pytest.mark.parametrize("evaluations", [0, 1, 8.5, 22])
@pytest.mark.parametrize("config", [{}, {"sites": "block"}, {"pruner": "depth"}])
def test_uses_its_share_exactly_and_answers_every_size(evaluations: float, config: dict[str, object]) -> None:
    space = make_space(4, **config)
    oracle = MadeUpOracle(space, 1000)
    answers = bayesian(oracle, SIZES, evaluations, np.random.default_rng(0), FAST)
    assert oracle.spent == len(oracle.calls) == int(evaluations)
    assert answers.shape == (len(SIZES), space.num_sites)
    for levels, kept in zip(answers, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)


def test_objectives_are_the_exact_size_and_the_drawn_quality() -> None:
    space = make_space(4)
    levels = np.random.default_rng(0).integers(0, space.num_levels, (6, space.num_sites))
    x = torch.as_tensor(space.sparsities(levels)).reshape(3, 2, -1)
    draws = torch.randn(5, 3, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = SizeAndQuality(space)(draws, x)
    assert values.shape == (5, 3, 2, 2)
    assert values[2, ..., 0].flatten().numpy() == pytest.approx(-space.kept(levels), abs=1e-12)
    assert (values[..., 1:] == draws).all()


def test_beats_random_search_and_uniform_at_equal_budget() -> None:
    space = make_space(6)
    ratios, against_uniform = [], []
    for seed in range(2):
        oracle, other = MadeUpOracle(space, 42, seed), MadeUpOracle(space, 42, seed)
        found = bayesian(oracle, SIZES, 42, np.random.default_rng(seed), BayesianConfig(samples=16, steps=6))
        chance = random_search(other, SIZES, 42, np.random.default_rng(seed))
        ratios += [oracle.truth(a) / oracle.truth(b) for a, b in zip(found, chance, strict=True)]
        alike = [min(map(oracle.truth, starts(space, kept))) for kept in SIZES]
        against_uniform += [oracle.truth(a) / b for a, b in zip(found, alike, strict=True)]
    assert np.exp(np.mean(np.log(ratios))) < 0.9
    assert np.mean(against_uniform) < 0.85


def test_proposals_stay_near_the_sizes_asked_for() -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 44)
    bayesian(oracle, (0.9, 0.6), 44, np.random.default_rng(0), FAST)
    assert len({levels.tobytes() for levels, _ in oracle.calls}) == 44
    largest = space.tables["params"][:, 0].max() / space.geometry.block_params
    sizes = space.kept(np.array([levels for levels, _ in oracle.calls]))
    assert sizes.min() >= 0.6 - MARGIN - largest  # projection and snapping may each stop a level short


def test_the_same_generator_gives_the_same_answers_whatever_the_global_state() -> None:
    space = make_space(4)
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        answers.append(bayesian(MadeUpOracle(space, 30), SIZES, 30, np.random.default_rng(3), FAST))
    assert (answers[0] == answers[1]).all()
    other = bayesian(MadeUpOracle(space, 30), SIZES, 30, np.random.default_rng(4), FAST)
    assert (other != answers[0]).any()


def test_an_oracle_that_runs_dry_and_a_space_that_is_exhausted() -> None:
    space = make_space(4)
    oracle = MadeUpOracle(space, 20.5)
    for levels, kept in zip(bayesian(oracle, SIZES, 400, np.random.default_rng(0), FAST), SIZES, strict=True):
        assert_within_and_full(space, levels, kept)
    assert oracle.spent == 20
    tiny = make_space(2, pruner="depth", sites="block")  # four strategies
    answers = bayesian(MadeUpOracle(tiny, 24), (0.9, 0.5), 24, np.random.default_rng(0), FAST)
    assert (answers == 1).sum(axis=1).tolist() == [1, 1]


def test_sixty_sites_with_the_standard_effort() -> None:
    space = SearchSpace(geometry(30, groups=3, neurons=1536, hidden=576), SpaceConfig())
    oracle = MadeUpOracle(space, 20)
    answers = bayesian(oracle, SIZES, 20, np.random.default_rng(0))
    assert oracle.spent == 20
    for levels, kept in zip(answers, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)
