"""Slices against plain dense algebra: compensation, predicted damage, order of elimination, permutation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unicuco import tiny
from unicuco.errors import PreparationError, StrategyError
from unicuco.models.load import BaseModel
from unicuco.preparation import Preparation
from unicuco.pruners.build import build_pruner
from unicuco.pruners.depth import DepthPruner
from unicuco.pruners.slices import column_damage, compensated, elimination_order, ridge, unit_columns
from unicuco.space import SpaceConfig


def problem(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """A positive definite Gram matrix with correlated inputs (n x n) and a projection (d x n), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * n, n, generator=generator, dtype=torch.float64)
    mix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    x = x @ (mix / n**0.5 + torch.eye(n, dtype=torch.float64))
    weight = torch.randn(d, n, generator=generator, dtype=torch.float64)
    return ridge(x.T @ x / len(x), 1e-2), weight


def solve(gram: Tensor, weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares on the columns ``kept``: the projection (d x k) and its residual, by the normal equations."""
    new = weight @ gram[:, kept] @ torch.linalg.inv(gram[kept][:, kept])
    full = torch.zeros_like(weight)
    full[:, kept] = new
    gap = weight - full
    return new, (gap @ gram @ gap.T).trace()


@given(st.integers(2, 24), st.integers(1, 6), st.integers(0, 10**6), st.data())
def test_compensation_solves_the_normal_equations(n: int, d: int, seed: int, data: st.DataObject) -> None:
    gram, weight = problem(n, d, seed)
    kept = data.draw(st.integers(1, n - 1))
    expected, _ = solve(gram, weight, torch.arange(kept))
    found = compensated(torch.linalg.cholesky(gram), weight, kept)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(found, weight[:, :kept])


def test_nothing_removed_changes_nothing() -> None:
    gram, weight = problem(16, 4, 0)
    assert torch.equal(compensated(torch.linalg.cholesky(gram), weight, 16), weight)


@given(st.integers(2, 24), st.integers(0, 10**6))
def test_suffix_sums_are_the_damage_of_every_cut(n: int, seed: int) -> None:
    gram, weight = problem(n, 3, seed)
    columns = column_damage(torch.linalg.cholesky(gram), weight)
    for kept in range(n):
        _, residual = solve(gram, weight, torch.arange(kept))
        torch.testing.assert_close(columns[kept:].sum(), residual, rtol=1e-6, atol=1e-9)


@settings(max_examples=30)
@given(st.sampled_from([(7, 1), (8, 2), (9, 3)]), st.integers(0, 10**6))
def test_elimination_is_greedy_with_a_full_re_solve(size: tuple[int, int], seed: int) -> None:
    n, unit = size
    gram, weight = problem(n, 3, seed)
    alive = list(range(n // unit))
    removed = []
    while alive:
        losses = {}
        for u in alive:
            stay = torch.tensor([v for v in alive if v != u], dtype=torch.long)
            losses[u] = solve(gram, weight, unit_columns(stay, unit))[1].item() if len(stay) else float("inf")
        worst = min(losses, key=losses.__getitem__)
        removed.append(worst)
        alive.remove(worst)
    assert elimination_order(gram, weight, unit, step=1).tolist() == removed[::-1]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 10**6))
def test_the_order_names_every_unit_once(n: int, step: int, seed: int) -> None:
    gram, weight = problem(n, 2, seed)
    assert sorted(elimination_order(gram, weight, 1, step).tolist()) == list(range(n))


def test_an_ordered_cut_loses_less_than_a_random_one() -> None:
    gram, weight = problem(64, 8, 3)
    order = elimination_order(gram, weight, 1, 4)
    ordered = solve(gram, weight, order[:32])[1]
    generator = torch.Generator().manual_seed(0)
    others = [solve(gram, weight, torch.randperm(64, generator=generator)[:32])[1] for _ in range(20)]
    assert ordered < 0.8 * min(others)


def test_ridge_of_nothing_is_still_positive_definite() -> None:
    torch.linalg.cholesky(ridge(torch.zeros(4, 4), 1e-2))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_width_pruner_permutes_weights_but_not_the_function(
    family: str, load: Callable[..., BaseModel], prepared: Callable[..., Preparation]
) -> None:
    base, preparation = load(family), prepared(family)
    ids = torch.randint(4, tiny.VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    before = base.model(input_ids=ids).logits
    down = base.model.get_decoder().layers[0].mlp.down_proj.weight.clone()
    pruner = build_pruner(base, preparation)
    assert not torch.equal(base.model.get_decoder().layers[0].mlp.down_proj.weight, down)
    torch.testing.assert_close(base.model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
    # All widths kept: the model's own tensors, not copies.
    full = pruner.pruned_block(0, base.geometry.blocks[0].groups, base.geometry.blocks[0].neurons)
    assert full.mlp["down_proj.weight"].data_ptr() == base.model.get_decoder().layers[0].mlp.down_proj.weight.data_ptr()


def test_a_cached_level_is_the_same_tensor_and_a_small_cache_gives_the_same_numbers(
    load: Callable[..., BaseModel], prepared: Callable[..., Preparation]
) -> None:
    from unicuco.pruners.width import WidthPruner

    preparation = prepared("llama")
    roomy = WidthPruner(load("llama"), preparation)
    tight = WidthPruner(load("llama"), preparation, cache_bytes=1)
    first = roomy.pruned_block(1, 2, 64).mlp["down_proj.weight"]
    assert roomy.pruned_block(1, 2, 64).mlp["down_proj.weight"] is first
    for neurons in (32, 64, 32, 64):
        expected = roomy.pruned_block(1, 2, neurons)
        for name, tensor in tight.pruned_block(1, 2, neurons).mlp.items():
            assert torch.equal(tensor, expected.mlp[name])


def test_a_pruner_refuses_a_preparation_of_another_model(
    load: Callable[..., BaseModel], prepared: Callable[..., Preparation]
) -> None:
    with pytest.raises(PreparationError, match="another base model"):
        build_pruner(load("qwen3"), prepared("llama"))


def test_depth_keeps_whole_sublayers_or_nothing(
    load: Callable[..., BaseModel], prepared: Callable[..., Preparation]
) -> None:
    base = load("llama")
    pruner = build_pruner(base, prepared("llama", SpaceConfig(pruner="depth")))
    assert isinstance(pruner, DepthPruner)
    block = pruner.pruned_block(0, 4, 0)
    assert block.mlp == {} and block.attention["o_proj.weight"].shape == (64, 128)
    with pytest.raises(StrategyError, match="whole"):
        pruner.pruned_block(0, 2, 256)
