"""First designs and pools of proposals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.costs import Costs
from unicuco.objectives import Scale
from unicuco.proposals import Pool, budgets_of, first_design, make_pool, pick, strategy_key, uniform
from unicuco.qualities import Qualities
from unicuco.stratnet import StratNet
from unicuco.surrogate import Surrogate

SPACE = make_space(4)
MODEL = KnownDamage(SPACE)


@given(st.integers(2, 60), st.integers(0, 1000), st.booleans())
def test_a_first_design_is_distinct_and_covers_the_sizes(count: int, seed: int, informed: bool) -> None:
    table = MODEL.table if informed else None
    proposals = first_design(SPACE, table, count, 0.4, np.random.default_rng(seed))
    levels = np.array([row for row, _ in proposals])
    SPACE.check_levels(levels)
    assert len(proposals) <= count and len({strategy_key(row) for row in levels}) == len(proposals)
    assert len(proposals) >= min(count, 5)
    kept = SPACE.kept(levels)
    assert (kept > 0.4 - 0.15).all() and (kept < 1).all()
    if count >= 20:
        assert kept.min() < 0.55 and kept.max() > 0.85


def test_the_whole_network_comes_first_where_it_is_worth_measuring() -> None:
    plain, with_whole = (
        first_design(SPACE, MODEL.table, 12, 0.4, np.random.default_rng(0), whole=whole) for whole in (False, True)
    )
    assert with_whole[0][1] == "whole" and not with_whole[0][0].any() and len(with_whole) == len(plain)
    assert all(row.any() for row, _ in plain)


@given(st.floats(0.05, 1.0), st.booleans())
def test_uniform_strategies_fit_their_size(kept: float, mlp_only: bool) -> None:
    levels = uniform(SPACE, kept, mlp_only)
    budget = budgets_of(SPACE, np.array([kept]))[0]
    cheapest = SPACE.geometry.blocks[0].params_per_neuron * 32
    assert budget - cheapest - 64 <= SPACE.total(levels) <= budget + 1e-6


def test_uniform_over_mlps_alone_leaves_attention_alone_while_it_can() -> None:
    levels = uniform(SPACE, 0.7, True)
    is_mlp = np.array([site.kind == "mlp" for site in SPACE.sites])
    assert not levels[~is_mlp].any() and levels[is_mlp].max() - levels[is_mlp].min() <= 1


@pytest.mark.parametrize("sites", ["sublayer", "block"])
def test_a_pool_is_new_distinct_and_scored(sites: str) -> None:
    space = make_space(4, sites=sites)
    model = KnownDamage(space)
    seen = np.array([row for row, _ in first_design(space, model.table, 16, 0.4, np.random.default_rng(0))])
    qualities = Qualities.of_mean(Surrogate(space, model.table).fit(seen, model.kl(seen)))
    taken = {strategy_key(row) for row in seen}
    torch.manual_seed(0)
    scale = Scale(0.4, (-5.0,), (0.0,))
    pool = make_pool(
        Costs(space), qualities, StratNet(2, space.num_sites, 16), scale, taken, torch.Generator().manual_seed(0)
    )
    keys = {strategy_key(row) for row in pool.levels}
    assert len(keys) == len(pool.levels) == len(pool.origins) > 20 and not keys & taken
    space.check_levels(pool.levels)
    np.testing.assert_array_equal(pool.costs[:, 0], space.kept(pool.levels))
    assert np.isfinite(pool.mean).all() and (pool.deviation > 0).all()
    everything = taken | keys
    again = make_pool(
        Costs(space), qualities, StratNet(2, space.num_sites, 16), scale, everything, torch.Generator().manual_seed(0)
    )
    assert not {strategy_key(row) for row in again.levels} & everything


def test_optimism_prefers_what_is_uncertain() -> None:
    pool = Pool(
        np.zeros((2, 1), dtype=int), ["a", "b"], np.array([0.5, 0.5]), np.zeros((2, 1)), np.array([[0.1], [1.0]])
    )
    scale, known = Scale(0.4, (-5.0,), (2.0,)), np.array([[0.9, -4.0]])
    assert pick(pool, known, scale, 1.0, 1) == [1]
    surer = Pool(pool.levels, pool.origins, pool.costs, np.array([[-0.2], [0.0]]), pool.deviation)
    assert pick(surer, known, scale, 0.0, 1) == [0]


def test_what_is_measured_or_pending_is_not_worth_picking_again() -> None:
    pool = Pool(
        np.zeros((2, 1), dtype=int), ["a", "b"], np.array([0.5, 0.7]), np.array([[0.0], [-1.0]]), np.zeros((2, 1))
    )
    scale = Scale(0.4, (-5.0,), (2.0,))
    assert set(pick(pool, np.empty((0, 2)), scale, 1.0, 2)) == {0, 1}
    assert pick(pool, np.array([[0.5, -1.0]]), scale, 1.0, 2) == []
    assert pick(pool, np.array([[0.5, 0.0]]), scale, 1.0, 2) == [1]
