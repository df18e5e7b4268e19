"""Allocation against brute force on spaces small enough to try everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, geometry, make_space
from unicuco.allocation import allocate
from unicuco.proposals import budgets_of
from unicuco.space import SearchSpace, SpaceConfig

TINY = [
    SearchSpace(geometry(blocks=2, groups=2), SpaceConfig(neuron_multiple=64)),
    SearchSpace(geometry(blocks=3, groups=2), SpaceConfig(pruner="depth")),
    SearchSpace(geometry(blocks=3), SpaceConfig(sites="block", neuron_multiple=64)),
]


def everything(space: SearchSpace) -> np.ndarray:
    return np.array(list(itertools.product(*(range(n) for n in space.num_levels))))


ALL = {id(space): everything(space) for space in TINY}


def total_damage(table: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return table[np.arange(table.shape[0]), levels].sum(axis=-1)


@given(st.sampled_from(TINY), st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_as_good_as_brute_force_up_to_one_site(space: SearchSpace, seed: int, kept: float) -> None:
    """The multiplier's solution lies on the convex hull; the next one costs at most one site more than the budget."""
    table = KnownDamage(space, seed).truth
    levels, budget = ALL[id(space)], budgets_of(space, np.array([kept]))[0]
    sizes, damages = space.total(levels), total_damage(table, levels)
    found = allocate(space, table, np.array([budget]))[0]
    assert space.total(found) <= budget
    best = damages[sizes <= budget].min()
    largest_site = space.tables["params"][:, 0].max()
    without_one_site = damages[sizes <= max(budget - largest_site, sizes.min())].min()
    reached = total_damage(table, found)
    assert best - 1e-12 <= reached <= without_one_site + 1e-12


@given(st.sampled_from(TINY), st.integers(0, 10**6), st.floats(-4, 4))
def test_optimal_on_the_hull(space: SearchSpace, seed: int, log_multiplier: float) -> None:
    """A budget that is exactly the cost of some Lagrangian solution gets an optimal strategy."""
    table = KnownDamage(space, seed).truth
    cost = space.tables["params"] / space.tables["params"].max()
    budget = space.total((table + np.exp(log_multiplier) * cost).argmin(axis=1))
    levels = ALL[id(space)]
    best = total_damage(table, levels)[space.total(levels) <= budget].min()
    found = allocate(space, table, np.array([budget]))[0]
    assert total_damage(table, found) == pytest.approx(best, rel=1e-6)


@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_never_over_budget_and_no_room_for_a_level(seed: int, kept: list[float]) -> None:
    space = make_space(4)
    table = KnownDamage(space, seed).table
    budgets = budgets_of(space, np.array(kept))
    levels = allocate(space, table, budgets)
    space.check_levels(levels)
    assert (space.total(levels) <= budgets).all()
    for row, budget in zip(levels, budgets, strict=True):
        for site in np.flatnonzero(row):
            up = row.copy()
            up[site] -= 1
            assert space.total(up) > budget


def test_budgets_below_everything_dropped_give_the_smallest_and_large_ones_dense() -> None:
    space = make_space(3)
    table = KnownDamage(space).table
    levels = allocate(space, table, np.array([0.0, 1e12]))
    assert (levels[0] == space.num_levels - 1).all() and (levels[1] == 0).all()


def test_one_table_per_budget() -> None:
    space = make_space(3)
    tables = np.array([KnownDamage(space, seed).truth for seed in range(5)])
    budgets = budgets_of(space, np.linspace(0.4, 0.9, 5))
    together = allocate(space, tables, budgets)
    for i in range(5):
        assert (allocate(space, tables[i], budgets[i : i + 1])[0] == together[i]).all()


def test_damage_falls_as_the_budget_grows() -> None:
    space = make_space(6)
    table = KnownDamage(space).truth
    damages = total_damage(table, allocate(space, table, budgets_of(space, np.linspace(0.2, 1, 60))))
    # Between hull points the filling may be a little off, never by more than a site's worth.
    assert damages[0] > damages[-1] == 0 and (np.diff(damages) <= 0.02 * damages[0]).all()
