"""Sliced updates: any width of the super-network is exactly the slice of its merged model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from unicuco.models.load import BaseModel
from unicuco.models.swap import SwitchableModel
from unicuco.preparation import Preparation
from unicuco.pruners.base import pruned_blocks
from unicuco.pruners.width import WidthPruner
from unicuco.supernet.elastic import Supernetwork

TOKENS = torch.arange(4, 4 + 48).view(2, 24)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def disturbed(network: Supernetwork, seed: int = 0) -> Supernetwork:
    generator = torch.Generator().manual_seed(seed)
    for update in network.updates.values():
        update.up.data = 0.05 * torch.randn(update.up.shape, generator=generator)
    return network


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3", "olmo2", "gpt2", "opt"])
def test_a_width_is_the_slice_of_the_merged_model(
    family: str, load: Callable[..., BaseModel], prepared: Callable[..., Preparation]
) -> None:
    preparation, base = prepared(family), load(family)
    dense = logits(base.model)
    network = disturbed(Supernetwork(base, preparation, rank=4, seed=0))
    space = preparation.space
    levels = tiny.some_strategies(space, 4)
    sliced, moved = [], 0
    for row in levels:
        with network.as_shape(space.shape(row)):
            sliced.append(logits(base.model))
        with network.as_shape(space.shape(row), updated=False):
            moved += not torch.allclose(logits(base.model), sliced[-1], atol=1e-3)
    assert moved >= 3  # one of them may drop every sublayer, and with them all updates
    with network.as_shape(None, updated=False):
        assert torch.allclose(logits(base.model), dense, atol=1e-4)
    whole = logits(base.model)
    assert not torch.allclose(whole, dense, atol=1e-3)

    network.merge()
    assert torch.allclose(logits(base.model), whole, atol=1e-4)
    pruner, switch = WidthPruner(base, preparation), SwitchableModel(base.model)
    for row, expected in zip(levels, sliced, strict=True):
        switch.apply(pruned_blocks(pruner, space.shape(row)))
        assert torch.allclose(logits(base.model), expected, atol=1e-3), family


def test_gradients_reach_only_what_a_width_has(
    load: Callable[..., BaseModel], prepared: Callable[..., Preparation]
) -> None:
    preparation, base = prepared("llama"), load("llama")
    network = disturbed(Supernetwork(base, preparation, rank=4, seed=0))
    space = preparation.space
    level = next(i for i, site in enumerate(space.sites) if site.kind == "mlp" and site.block == 1)
    levels = np.zeros(space.num_sites, dtype=np.int64)
    levels[level] = 2
    neurons = space.shape(levels).neurons[1]
    assert 0 < neurons < preparation.geometry.blocks[1].neurons
    network.set(space.shape(levels))
    base.model(input_ids=TOKENS, use_cache=False).logits.square().sum().backward()
    up = network.updates["model.layers.1.mlp.up_proj"].up.grad
    assert up is not None and up[:neurons].abs().sum() > 0 and up[neurons:].abs().sum() == 0
    # What is removed still counts, through what the output projection makes of it.
    down = network.updates["model.layers.1.mlp.down_proj"].down.grad
    assert down is not None and down[:, neurons:].abs().sum() > 0
    assert all(p.grad is None for u in network.updates.values() for p in u.layer.parameters())
