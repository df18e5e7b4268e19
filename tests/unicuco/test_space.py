"""Search spaces: legal levels, exact sizes of really pruned models, projection onto budgets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unicuco import tiny
from tests.unicuco.synthetic import geometry
from unicuco.errors import InfeasibleRequestError, StrategyError
from unicuco.models.load import BaseModel
from unicuco.models.swap import SwitchableModel
from unicuco.preparation import Preparation
from unicuco.pruners.base import pruned_blocks
from unicuco.pruners.build import build_pruner
from unicuco.space import MEASURES, SearchSpace, SpaceConfig

CONFIGS = [
    SpaceConfig.model_validate({"sites": sites, "pruner": pruner, "neuron_multiple": 48})  # 48 does not divide 256
    for sites, pruner in itertools.product(("sublayer", "block"), ("width", "depth"))
] + [SpaceConfig(drop=False, neuron_multiple=48)]
SPACES = [SearchSpace(geometry(blocks=4), config) for config in CONFIGS]


def name(config: SpaceConfig) -> str:
    return f"{config.sites}-{config.pruner}" + ("" if config.drop else "-kept")


def random_levels(space: SearchSpace, seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, space.num_levels, (count, space.num_sites))


@st.composite
def wishes(draw: st.DrawFn) -> tuple[SearchSpace, np.ndarray]:
    """A space and a few strategies in it."""
    space = draw(st.sampled_from(SPACES))
    rows = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    x = np.random.default_rng(seed).random((rows, space.num_sites))
    # Corners and ties as well as the inside.
    return space, draw(st.sampled_from([x, x.round(), x.round(1), np.zeros_like(x), np.ones_like(x), x**4]))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_levels_go_from_dense_to_dropped(config: SpaceConfig) -> None:
    """Or to the narrowest, where nothing may be dropped."""
    space = SearchSpace(geometry(), config)
    for site in space.sites:
        assert site.sparsity[0] == 0 and (site.sparsity[-1] == 1) == config.drop
        assert list(site.sparsity) == sorted(set(site.sparsity))
    dense = np.zeros(space.num_sites, dtype=int)
    assert space.kept(dense) == 1 and space.total(dense) == space.geometry.params
    assert (space.kept(space.smallest) == 0) == config.drop
    assert (space.total(space.smallest) == space.geometry.fixed_params) == config.drop
    assert space.num_sites == (12 if config.sites == "sublayer" else 6)
    assert (space.num_levels == 2).all() == (config.pruner == "depth")


@given(st.sampled_from(SPACES), st.integers(0, 2**32 - 1))
def test_snap_undoes_sparsities(space: SearchSpace, seed: int) -> None:
    levels = random_levels(space, seed, 4)
    assert (space.snap(space.sparsities(levels)) == levels).all()


@given(wishes())
def test_snap_takes_a_nearest_level(drawn: tuple[SearchSpace, np.ndarray]) -> None:
    space, x = drawn
    snapped = space.sparsities(space.snap(x))
    for i, site in enumerate(space.sites):
        nearest = np.abs(np.array(site.sparsity)[None] - x[:, i : i + 1]).min(axis=1)
        np.testing.assert_allclose(np.abs(snapped[:, i] - x[:, i]), nearest, atol=1e-12)


def test_a_tie_keeps_more() -> None:
    space = SearchSpace(geometry(), SpaceConfig(pruner="depth"))
    assert (space.snap(np.full(space.num_sites, 0.5)) == 0).all()


@pytest.mark.parametrize("bad", [np.zeros(3), np.full(12, 1.2), np.full(12, -0.2), np.full(12, np.nan)])
def test_a_vector_that_is_no_strategy_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(StrategyError, match="strateg"):
        SearchSpace(geometry()).snap(bad)


@pytest.mark.parametrize("bad", [np.zeros(3, dtype=int), np.full(12, 99), np.full(12, -1), np.zeros(12)])
def test_levels_that_do_not_exist_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(StrategyError, match="strategy"):
        SearchSpace(geometry()).check_levels(bad)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sizes_are_those_of_the_pruned_model(
    family: str,
    config: SpaceConfig,
    load: Callable[..., BaseModel],
    prepared: Callable[..., Preparation],
) -> None:
    """Counted on the module tree that really runs: parameters, weights of linear layers, keys and values."""
    preparation = prepared(family, config)
    base = load(family)
    pruner, space = build_pruner(base, preparation), preparation.space
    switch = SwitchableModel(base.model)
    n = space.num_sites
    corners = [np.zeros(n, dtype=int), space.num_levels - 1, np.eye(n, dtype=int)[0] * (space.num_levels[0] - 1)]
    for levels in [*corners, *random_levels(space, 1, 5)]:
        switch.apply(pruned_blocks(pruner, space.shape(levels)))
        size = space.size(levels, bytes_per_param=4)
        assert size.params == sum(p.numel() for p in base.model.parameters())
        macs, kv = _really_used(base.model)
        assert size.flops_per_token == 2 * macs
        assert size.kv_bytes_per_token == 4 * kv
        assert size.bytes == 4 * size.params
        assert size.ratio == size.params / base.geometry.params
        in_blocks = sum(p.numel() for p in base.model.get_decoder().layers.parameters())
        assert size.kept == pytest.approx(in_blocks / base.geometry.block_params)
        switch.restore()
    assert base.geometry.params == sum(p.numel() for p in base.model.parameters())


def _really_used(model: Any) -> tuple[int, int]:
    """Multiply-adds per token in linear layers, and numbers that a cache would hold per token, seen in a forward."""
    tokens, macs, kv = 5, 0, 0
    handles = []

    def count(linear: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        macs += inputs[0].numel() * output.shape[-1] // tokens

    def cached(linear: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal kv
        kv += output.numel() // tokens

    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            handles.append(module.register_forward_hook(count))
            if path.endswith(("k_proj", "v_proj")):
                handles.append(module.register_forward_hook(cached))
    with torch.no_grad():
        model(input_ids=torch.arange(4, 4 + tokens)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return macs, kv


@settings(max_examples=100)
@given(wishes(), st.sets(st.sampled_from(MEASURES), min_size=1), st.data())
def test_projection_fits_every_budget_and_wastes_less_than_a_level(
    drawn: tuple[SearchSpace, np.ndarray], measures: set[Any], data: st.DataObject
) -> None:
    space, x = drawn
    dropped = space.num_levels - 1
    # Budgets at which some strategy just fits, or just does not: there an error of one shows.
    tight = random_levels(space, data.draw(st.integers(0, 2**32 - 1)), len(x))
    budgets = {
        m: np.maximum(space.total(tight, m) + data.draw(st.sampled_from([-1, 0, 1])), space.total(dropped, m))
        for m in sorted(measures)
    }
    levels = space.project(x, budgets)
    space.check_levels(levels)
    for measure, budget in budgets.items():
        assert (space.total(levels, measure) <= budget).all()
    for row in range(len(x)):
        for site in np.flatnonzero(levels[row] > 0):
            up = levels[row].copy()
            up[site] -= 1
            assert any(space.total(up, m) > b[row] for m, b in budgets.items()), f"site {site} could keep a level more"
    assert (space.project(space.sparsities(levels), budgets) == levels).all(), "projecting twice changes the strategy"


@given(wishes())
def test_projection_keeps_what_fits_exactly(drawn: tuple[SearchSpace, np.ndarray]) -> None:
    space, x = drawn
    levels = space.snap(x)
    assert (space.project(x, {"params": space.total(levels)}) == levels).all()


@given(wishes())
def test_projection_is_dense_when_the_budget_allows(drawn: tuple[SearchSpace, np.ndarray]) -> None:
    space, x = drawn
    assert not space.project(x, {"params": np.full(len(x), space.geometry.params)}).any()


def test_projection_follows_the_wish() -> None:
    """Of two equal sites, the one wished sparser ends sparser."""
    space = SearchSpace(geometry(blocks=2), SpaceConfig(neuron_multiple=16))
    x = np.array([[0.1, 0.1, 0.6, 0.6]])
    budget = 0.6 * space.geometry.block_params + space.geometry.fixed_params
    sparsity = space.sparsities(space.project(x, {"params": np.array([budget])}))[0]
    assert sparsity[2] >= sparsity[0] + 0.2 and sparsity[3] >= sparsity[1] + 0.2


@pytest.mark.parametrize("measure", MEASURES)
def test_a_budget_below_everything_dropped_is_infeasible(measure: Any) -> None:
    space = SPACES[0]
    floor = int(space.total(space.num_levels - 1, measure))
    with pytest.raises(InfeasibleRequestError, match=f"{floor:,} are left"):
        space.project(np.zeros((1, space.num_sites)), {measure: np.array([floor - 1])})


def test_block_levels_prune_attention_and_mlp_alike() -> None:
    space = SearchSpace(geometry(blocks=1, groups=4, neurons=256), SpaceConfig(sites="block", neuron_multiple=64))
    assert [(level.groups, level.neurons) for level in space.sites[0].levels] == [
        (4, 256), (3, 192), (2, 128), (1, 64), (0, 0)
    ]  # fmt: skip
