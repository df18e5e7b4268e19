"""The dynamic program against scipy's mixed-integer solver; the scores against the oracle they come from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from tests.unicuco.baselines.made_up import MadeUpOracle, assert_within_and_full
from tests.unicuco.synthetic import KnownDamage, geometry, make_space
from unicuco.baselines.knapsack import knapsack, replacement_scores, solve_all
from unicuco.baselines.uniform import uniform
from unicuco.errors import InfeasibleRequestError
from unicuco.space import SearchSpace, SpaceConfig, budgets_of

SIZES = (0.9, 0.7, 0.5)


def by_milp(space: SearchSpace, damage: np.ndarray, budget: float) -> float:
    """Least additive damage within ``budget``, one binary variable per site and level."""
    owner = np.repeat(np.arange(space.num_sites), space.num_levels)
    level = np.concatenate([np.arange(n) for n in space.num_levels])
    one_each = (owner == np.arange(space.num_sites)[:, None]).astype(float)
    scale = space.tables["params"].max()
    cost = space.tables["params"][owner, level][None] / scale
    solved = milp(
        damage[owner, level],
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(cost, ub=(budget - space.fixed["params"]) / scale),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert solved.success
    return float(solved.fun)


@pytest.mark.parametrize("config", [{}, {"pruner": "depth"}, {"sites": "block"}])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_good_as_mixed_integer_programming_at_every_budget(config: dict[str, object], seed: int) -> None:
    space = make_space(5, **config)
    # Random scores, not monotone: convex tables would let a greedy solver pass.
    damage = KnownDamage(space, seed).truth * np.random.default_rng(seed).lognormal(0, 0.5, space.levels.shape)
    budgets = budgets_of(space, np.array([1.0, 0.93, 0.81, 0.7, 0.52, 0.33, 0.1]))
    found = solve_all(space, damage, budgets)
    assert (space.total(found) <= budgets).all()
    for levels, budget in zip(found, budgets, strict=True):
        reached = damage[np.arange(space.num_sites), levels].sum()
        assert reached == pytest.approx(by_milp(space, damage, float(budget)), rel=1e-6, abs=1e-9)


def test_a_rounded_grid_is_never_over_and_nearly_as_good() -> None:
    space = make_space(8)
    damage = KnownDamage(space).truth
    budgets = budgets_of(space, np.linspace(0.3, 0.95, 14))
    exact, coarse = solve_all(space, damage, budgets), solve_all(space, damage, budgets, max_grid=1000)
    assert (space.total(coarse) <= budgets).all()
    sites = np.arange(space.num_sites)
    best, reached = damage[sites, exact].sum(axis=1), damage[sites, coarse].sum(axis=1)
    assert (reached >= best - 1e-12).all() and (reached <= 1.15 * best).all()
    assert (reached > best + 1e-12).any()  # 1000 steps are too few to be exact: the rounding was in use


def test_a_model_of_thirty_blocks_is_solved_exactly_on_its_own_grid() -> None:
    space = SearchSpace(geometry(30, groups=3, neurons=1536, hidden=576), SpaceConfig())
    damage = KnownDamage(space).truth
    budget = float(budgets_of(space, np.array(0.7)))
    found = solve_all(space, damage, np.array([budget]))[0]
    assert damage[np.arange(60), found].sum() == pytest.approx(by_milp(space, damage, budget), rel=1e-6)


def test_no_budget_below_the_smallest_strategy() -> None:
    space = make_space(3)
    damage = KnownDamage(space).truth
    smallest = int(space.total(space.num_levels - 1))
    assert (solve_all(space, damage, np.array([smallest]))[0] == space.num_levels - 1).all()
    with pytest.raises(InfeasibleRequestError, match="the smallest"):
        solve_all(space, damage, np.array([smallest - 1]))


def test_scores_are_what_the_oracle_measures() -> None:
    space = make_space(3)
    count = int((space.num_levels - 1).sum())
    oracle = MadeUpOracle(space, 1000)
    table = replacement_scores(oracle, 500, np.random.default_rng(0))
    assert oracle.spent == count == len({levels.tobytes() for levels, _ in oracle.calls})
    for site in range(space.num_sites):
        for level in range(space.num_levels[site]):
            levels = np.zeros(space.num_sites, dtype=np.int64)
            levels[site] = level
            assert table[site, level] == pytest.approx(oracle.truth(levels), rel=1e-12)


@pytest.mark.parametrize("evaluations", [0, 5, 12, 30, 50.5])
def test_a_small_budget_is_used_up_and_interpolated(evaluations: float) -> None:
    space = make_space(6)
    oracle = MadeUpOracle(space, 1000)
    table = replacement_scores(oracle, evaluations, np.random.default_rng(0))
    assert oracle.spent == int(evaluations)
    for site in range(space.num_sites):
        row = table[site, : space.num_levels[site]]
        assert row[0] == 0 and (np.diff(row) > 0).all()  # monotone, as the true ones are
        if evaluations >= space.num_sites:  # the dropped level is among the measured ones
            dropped = np.zeros(space.num_sites, dtype=np.int64)
            dropped[site] = space.num_levels[site] - 1
            assert row[-1] == pytest.approx(oracle.truth(dropped))


def test_an_oracle_with_less_than_promised_gives_answers_all_the_same() -> None:
    space = make_space(4)
    oracle = MadeUpOracle(space, 7)
    answers = knapsack(oracle, SIZES, 100, np.random.default_rng(0))
    assert oracle.spent == 7
    for levels, kept in zip(answers, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)


def test_beats_uniform_and_is_the_same_again() -> None:
    space = make_space(6)
    # Scores of single sites do not see interactions: with weak ones the program must be clearly better.
    oracles = [MadeUpOracle(space, 60, interaction=0.1), MadeUpOracle(space, 60, interaction=0.1)]
    first, second = (knapsack(oracle, SIZES, 60, np.random.default_rng(3)) for oracle in oracles)
    assert (first == second).all()
    for levels, kept in zip(first, SIZES, strict=True):
        assert_within_and_full(space, levels, kept)
        alike = min(oracles[0].truth(uniform(space, kept, form)) for form in (True, False))
        assert oracles[0].truth(levels) < 0.85 * alike
