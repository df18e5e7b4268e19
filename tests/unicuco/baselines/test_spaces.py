"""Every rival runs in every space that users can choose, a model with one KV group included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import geometry
from unicuco.baselines.bayesian import bayesian
from unicuco.baselines.evolution import evolution
from unicuco.baselines.influence import shortgpt
from unicuco.baselines.knapsack import knapsack
from unicuco.baselines.nsga2 import nsga2
from unicuco.baselines.random_search import random_search
from unicuco.baselines.seernet import seernet
from unicuco.baselines.uniform import uniform
from unicuco.levels import SPACES
from unicuco.space import SearchSpace

SIZES, BUDGET = (0.8, 0.6), 24.0
Search = Callable[[MadeUpOracle, np.random.Generator], np.ndarray]


def per_size(search: Callable[..., np.ndarray]) -> Search:
    return lambda oracle, rng: np.array([search(oracle, kept, BUDGET / 2, rng) for kept in SIZES])


def for_all(search: Callable[..., np.ndarray]) -> Search:
    return lambda oracle, rng: search(oracle, SIZES, BUDGET, rng)


def without_measuring(answer: Callable[[SearchSpace, float], np.ndarray]) -> Search:
    return lambda oracle, rng: np.array([answer(oracle.space, kept) for kept in SIZES])


SEARCHES: dict[str, Search] = {
    "uniform-mlp": without_measuring(lambda space, kept: uniform(space, kept, True)),
    "uniform-all": without_measuring(lambda space, kept: uniform(space, kept, False)),
    "shortgpt": without_measuring(lambda space, kept: shortgpt(space, np.arange(8.0), kept)),
    "evolution": per_size(evolution),
    "seernet": per_size(seernet),
    "knapsack": for_all(knapsack),
    "random": for_all(random_search),
    "nsga2": for_all(nsga2),
    "bayesian": for_all(bayesian),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("search", SEARCHES)
def test_answers_are_legal_and_within_their_size(search: str, space: str) -> None:
    for groups in (3, 1) if space == "width" else (3,):
        oracle = MadeUpOracle(SearchSpace(geometry(8, groups=groups), SPACES[space]), BUDGET)
        found = SEARCHES[search](oracle, np.random.default_rng(0))
        assert oracle.spent <= BUDGET + 1e-9
        for levels, kept in zip(found, SIZES, strict=True):
            assert_within_and_full(oracle.space, levels, kept)
