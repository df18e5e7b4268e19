"""Costs: exact sums of parameters and nanoseconds, between levels as between two, and one price out of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, geometry, make_space
from tests.unicuco.tables import made_up_table
from unicuco.allocation import allocate
from unicuco.costs import Costs
from unicuco.errors import SpaceError
from unicuco.latency import NANOSECONDS, LatencyError
from unicuco.objectives import Scale, site_shares
from unicuco.space import SearchSpace, budgets_of
from unicuco.timed import Timed

SPACE = make_space(5)
TABLE = made_up_table(SPACE.geometry, attention=3.0, mlp=0.3)
TIMED = Timed("box", TABLE, SPACE)
SPACES: list[dict[str, Any]] = [{}, {"drop": False}, {"pruner": "depth"}, {"sites": "block"}]


def some_levels(space: SearchSpace, count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, space.num_levels, (count, space.num_sites))


@pytest.mark.parametrize("config", SPACES)
def test_the_objective_is_the_tables_sum(config: dict[str, Any]) -> None:
    space = make_space(5, **config)
    timed, levels = Timed("box", TABLE, space), some_levels(space)
    costs, scale = Costs(space, TABLE), Scale(0.4, (-6.0,), (2.0,))
    assert costs.names == ("size", "latency") and len(costs) == 2
    scaled = scale.cost(torch.as_tensor(costs(levels))).numpy()
    blocks = timed.dense - timed.fixed["latency"]
    nanoseconds = (scaled[:, 1] * (1 - 0.4) + 0.4) * blocks + timed.fixed["latency"]
    np.testing.assert_array_equal(np.round(nanoseconds).astype(int), timed.total(levels))
    milliseconds = [TABLE.predict(space.shape(row)) for row in levels]
    np.testing.assert_allclose(timed.total(levels) / NANOSECONDS, milliseconds, atol=1e-4)
    np.testing.assert_array_equal(costs(levels)[:, 0], space.kept(levels))


@pytest.mark.parametrize("config", SPACES)
def test_sparsities_cost_what_their_levels_do_and_something_between_in_between(config: dict[str, Any]) -> None:
    space = make_space(5, **config)
    costs, levels = Costs(space, TABLE), some_levels(space)
    found = costs.of_sparsities(torch.as_tensor(space.sparsities(levels)))
    np.testing.assert_allclose(found.numpy(), costs(levels), atol=1e-12)
    deeper = np.minimum(levels + 1, space.num_levels - 1)
    middle = torch.as_tensor((space.sparsities(levels) + space.sparsities(deeper)) / 2).requires_grad_(True)
    between = costs.of_sparsities(middle)
    np.testing.assert_allclose(between.detach().numpy(), (costs(levels) + costs(deeper)) / 2, atol=1e-12)
    between.sum().backward()
    assert middle.grad is not None and torch.isfinite(middle.grad).all() and (middle.grad <= 1e-12).all()


def test_without_a_table_size_is_the_only_cost_as_it_always_was() -> None:
    costs, levels = Costs(SPACE), some_levels(SPACE)
    assert costs.names == ("size",) and costs.prices(np.ones((3, 1))) is None
    x = torch.as_tensor(SPACE.sparsities(levels))
    assert torch.equal(costs.of_sparsities(x)[:, 0], 1 - x @ torch.as_tensor(site_shares(SPACE)))
    np.testing.assert_array_equal(costs(levels), SPACE.kept(levels)[:, None])


@given(st.floats(0, 1), st.floats(0.3, 1))
def test_a_price_is_the_mix_of_both_and_no_allocation_is_over_it(share: float, left: float) -> None:
    costs, model = Costs(SPACE, TABLE), KnownDamage(SPACE)
    of_costs = np.array([[share, 1 - share]])
    prices = costs.prices(of_costs)
    assert prices is not None
    levels = allocate(SPACE, model.table, budgets_of(SPACE, np.array([left])), prices=prices)
    paid = prices[0][np.arange(SPACE.num_sites), levels[0]].sum() / SPACE.geometry.block_params
    assert paid == pytest.approx((costs(levels) @ of_costs[0])[0]) and paid <= left + 1e-9
    for site in np.flatnonzero(levels[0]):  # and nothing more fits
        more = levels.copy()
        more[0, site] -= 1
        assert (costs(more) @ of_costs[0])[0] > left - 1e-9


def test_parameters_as_prices_change_nothing() -> None:
    model, budgets = KnownDamage(SPACE), budgets_of(SPACE, np.linspace(0.3, 1.0, 30))
    prices = np.broadcast_to(SPACE.tables["params"].astype(float), (30, *SPACE.levels.shape))
    same = allocate(SPACE, model.table, budgets, prices=prices)
    np.testing.assert_array_equal(allocate(SPACE, model.table, budgets), same)


def test_a_table_of_another_model_or_that_says_nothing_is_refused() -> None:
    with pytest.raises(LatencyError, match="made-up, whose blocks differ"):
        Costs(SPACE, made_up_table(geometry(blocks=4)))
    zeros = make_space(5, pruner="wanda")
    with pytest.raises(SpaceError, match="zeros in dense shapes save no time"):
        Costs(zeros, TABLE).check_reach(0.9)
    narrow = make_space(5, drop=False)
    with pytest.raises(SpaceError, match=r"fastest strategy .* takes 0\.4\d\d .* drops sublayers"):
        Costs(narrow, TABLE).check_reach(0.42)
    Costs(SPACE, TABLE).check_reach(0.1)
