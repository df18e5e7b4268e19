"""Profiles of tiny models: complete, positive, and of the models that they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco import tiny
from unicuco.evaluator import Evaluator
from unicuco.latency import LatencyConfig, LatencyError
from unicuco.models.load import BaseModel
from unicuco.models.sites import find_blocks
from unicuco.profiling import monotone, profile, spread_strategies
from unicuco.pruners.base import pruned_blocks
from unicuco.pruners.unordered import Slices
from unicuco.space import SearchSpace, Shape, SpaceConfig
from unicuco.timing import Workload, interleaved, pruned_model

CONFIGS = [
    LatencyConfig(mode="prefill", dtype="float32", threads=1, tokens=24, batch=2),
    LatencyConfig(mode="decode", dtype="float32", threads=1, context=24, clock="processor"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.mode)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_profile_is_positive_and_complete(load: Callable[..., BaseModel], family: str, config: LatencyConfig) -> None:
    base = load(family)
    before = [parameter.clone() for parameter in base.model.parameters()]
    table = profile(base, config, neuron_multiple=64)
    assert table.config == config and table.fixed_ms > 0
    for index, block in zip(table.times_of, base.geometry.blocks, strict=True):
        times = table.blocks[index]
        assert times.attention.widths == tuple(range(1, block.groups + 1))
        assert times.mlp.widths == tuple(range(64, block.neurons + 1, 64))
    # One shape; but in Gemma some layers see a window and some see all.
    assert len(table.blocks) == (2 if family == "gemma3" else 1)
    assert len(table.checks) >= 2 and all(check.measured_ms > 0 for check in table.checks)
    assert table.surroundings["threads"] == 1
    for parameter, was in zip(base.model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)  # the model is as it was


def test_a_pruned_model_for_timing_computes_what_the_evaluator_measures(llama: Evaluator) -> None:
    space = llama.space
    tokens = torch.arange(4, 36)[None]
    for levels in tiny.some_strategies(space, 4):
        shape = space.shape(levels)
        if not any(shape.groups):
            continue
        model = pruned_model(llama.base, llama.pruner, shape)
        with torch.no_grad():
            logits = model(input_ids=tokens).logits.log_softmax(-1)
        llama._switch.apply(pruned_blocks(llama.pruner, shape))
        try:
            with torch.no_grad():
                expected = llama.base.model(input_ids=tokens).logits.log_softmax(-1)
        finally:
            llama._switch.restore()
        assert torch.allclose(logits, expected, atol=1e-4)


def test_slices_stay_those_of_the_dense_model(load: Callable[..., BaseModel]) -> None:
    base = load("qwen2")
    slices = Slices(base)
    dense = {name: tensor.clone() for name, tensor in find_blocks(base.model)[0].mlp.state_dict().items()}
    for neurons in (64, 256, 128):  # narrow first: wider ones must not be cut from it
        found = slices.pruned_block(0, 1, neurons).mlp
        assert torch.equal(found["up_proj.weight"], dense["up_proj.weight"][:neurons])
        assert torch.equal(found["down_proj.weight"], dense["down_proj.weight"][:, :neurons])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.mode)
def test_more_layers_take_longer(load: Callable[..., BaseModel], config: LatencyConfig) -> None:
    base = load("llama")
    config = config.model_copy(update={"clock": "processor", "threads": 1})
    workload, slices = Workload(config, base.geometry.vocab_size), Slices(base)
    shapes = [Shape((4, 4, 4), (256, 256, 256)), Shape((4, 0, 0), (0, 0, 0))]
    whole, small = interleaved([workload.on(pruned_model(base, slices, shape)) for shape in shapes], 9)
    assert whole > small > 0


def test_more_tokens_than_the_model_reads_are_refused(load: Callable[..., BaseModel]) -> None:
    with pytest.raises(LatencyError, match="at most 256 tokens"):
        profile(load("llama"), LatencyConfig(mode="prefill", dtype="float32", tokens=300))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_monotone_values_never_fall_and_keep_their_mean(values: list[float]) -> None:
    found = monotone(np.array(values))
    assert (np.diff(found) >= -1e-12).all()
    assert found.mean() == pytest.approx(np.mean(values), abs=1e-9)
    if sorted(values) == values:
        assert found == pytest.approx(values)


def test_spread_strategies_have_the_sizes_asked_for() -> None:
    from tests.unicuco.synthetic import geometry

    space = SearchSpace(geometry(), SpaceConfig(neuron_multiple=32))
    kept = np.array([0.9, 0.6])
    found = space.kept(spread_strategies(space, kept))
    assert (found <= kept).all() and (found > kept - 0.05).all()
