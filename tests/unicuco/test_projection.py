"""Projection onto budgets, against a slow search by hand on made-up levels and costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicuco.projection import Projection


def make(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(seed)
    num_levels = rng.integers(1, 6, rng.integers(2, 8))
    num_levels[0] = max(num_levels[0], 2)
    levels = np.full((len(num_levels), num_levels.max()), np.inf)
    tables = {name: np.zeros(levels.shape, dtype=np.int64) for name in ("params", "kv")}
    for i, n in enumerate(num_levels):
        # Multiples of an eighth: exact in floating point, so that both sides see the same ties.
        levels[i, :n] = np.concatenate([[0.0], np.sort(rng.choice(np.arange(1, 9), n - 1, replace=False)) / 8])
        for table in tables.values():
            costs = np.sort(rng.integers(0, 100, n))[::-1]
            table[i] = np.concatenate([costs, np.repeat(costs[-1:], levels.shape[1] - n)])
    return levels, num_levels, tables, rng


def snap(levels: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.abs(levels - x.clip(0, 1)[:, None]).argmin(axis=1)  # the first of equals keeps more


def by_hand(levels: np.ndarray, tables: dict[str, np.ndarray], x: np.ndarray, limits: dict[str, float]) -> np.ndarray:
    sites = np.arange(len(x))

    def fits(index: np.ndarray) -> bool:
        return all(table[sites, index].sum() <= limits[name] for name, table in tables.items() if name in limits)

    middles = [(v[1:] + v[:-1]) / 2 - own for v, own in zip([r[np.isfinite(r)] for r in levels], x, strict=True)]
    shifts = [-2.0, *sorted(np.concatenate(middles) + 1e-6)]
    index = next(found for shift in shifts if fits(found := snap(levels, x + shift)))
    while True:
        tries = []
        for site in np.flatnonzero(index > 0):
            fewer = index.copy()
            fewer[site] -= 1
            if fits(fewer):
                tries.append((-(levels[site, index[site]] - x[site]), site, fewer))
        if not tries:
            return index
        index = min(tries, key=lambda found: found[:2])[2]


@given(seed=st.integers(0, 10**6), names=st.sampled_from([("params",), ("kv",), ("params", "kv")]))
@settings(max_examples=200, deadline=None)
def test_rows_are_those_of_a_search_by_hand(seed: int, names: tuple[str, ...]) -> None:
    levels, num_levels, tables, rng = make(seed)
    x = rng.random((5, len(levels)))
    least = {name: tables[name][:, -1].sum() for name in names}
    most = {name: tables[name][:, 0].sum() for name in names}
    limits = {name: rng.uniform(least[name], most[name] + 1, len(x)) for name in names}
    found = Projection(levels, num_levels, tables).within(x, limits)
    for row, own, i in zip(found, x, range(len(x)), strict=True):
        assert (row == by_hand(levels, tables, own, {name: limit[i] for name, limit in limits.items()})).all()


def test_no_rows_give_no_rows() -> None:
    levels, num_levels, tables, _ = make(0)
    found = Projection(levels, num_levels, tables).within(np.empty((0, len(levels))), {"params": np.empty(0)})
    assert found.shape == (0, len(levels))


@pytest.mark.parametrize("x", [-3.0, 0.0, 1.0, 4.0])
def test_sparsities_out_of_range_come_to_the_ends(x: float) -> None:
    levels, num_levels, tables, _ = make(3)
    found = Projection(levels, num_levels, tables).nearest(np.full((1, len(levels)), x))[0]
    assert (found == snap(levels, np.full(len(levels), x))).all()
