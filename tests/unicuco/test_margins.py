"""Margins against slow references: true derivatives along the way from one level to another, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unicuco import tiny
from unicuco.evaluations import Candidate
from unicuco.evaluator import Evaluator
from unicuco.margins import OUTPUTS, _at_full_width, _dense_shape
from unicuco.preparation import Preparation
from unicuco.pruners.base import pruned_blocks
from unicuco.space import SpaceConfig

Open = Callable[..., Evaluator]


@pytest.fixture
def open_evaluator(model_folder: Callable[[str], Path], prepared: Callable[..., Preparation]) -> Open:
    def build(family: str, **space: object) -> Evaluator:
        config = SpaceConfig.model_validate({"neuron_multiple": 32} | space)
        return Evaluator(str(model_folder(family)), prepared(family, config).folder, tiny.FLOAT32)

    return build


def middle(evaluator: Evaluator) -> np.ndarray:
    """Something pruned everywhere, a dropped sublayer and a dense one included."""
    levels = np.minimum(1, evaluator.space.num_levels - 1)
    # Not the first site: all that follows it bends too much with it for a finite difference.
    levels[1], levels[-1] = evaluator.space.num_levels[1] - 1, 0
    return levels


@pytest.mark.parametrize(
    ("family", "space"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("gpt2", {}),
        ("llama", {"sites": "block"}),
        ("llama", {"pruner": "depth"}),
        ("llama", {"pruner": "wanda", "sparsities": (0, 0.3, 0.6, 0.8)}),
        ("qwen3", {"pruner": "sparsegpt", "sparsities": (0, 0.3, 0.6), "sites": "block"}),
        ("opt", {"pruner": "wanda", "sparsities": (0, 0.3, 0.6)}),
    ],
    ids=["llama", "qwen3", "biases", "blocks", "depth", "wanda", "sparsegpt", "wanda-biases"],
)
def test_they_are_the_derivative_of_kl_towards_every_level(family: str, space: dict, open_evaluator: Open) -> None:
    evaluator = open_evaluator(family, **space)
    levels = middle(evaluator)
    found = evaluator.margins(levels, 1)
    there = evaluator.on(evaluator.preparation.margin_windows(1))
    assert found.kl == pytest.approx(there.measure(evaluator.space.shape(levels)).kl, rel=1e-4)
    assert found.change[np.arange(len(levels)), levels] == pytest.approx(0)
    step, checked = 0.002, 0
    for site in range(evaluator.space.num_sites):
        for level in range(evaluator.space.num_levels[site]):
            if level == levels[site]:
                continue
            other = levels.copy()
            other[site] = level
            sides = [kl_between(there, levels, other, share) for share in (-step, step)]
            slope = (sides[1] - sides[0]) / (2 * step)
            assert found.change[site, level] == pytest.approx(slope, rel=0.05, abs=2e-4 * found.kl), (site, level)
            checked += abs(slope) > 1e-3 * found.kl
    assert checked > 5


def kl_between(evaluator: Evaluator, levels: np.ndarray, other: np.ndarray, share: float) -> float:
    """KL with every output projection ``share`` of the way from one strategy's to the other's; sparse: every matrix."""
    space, pruner = evaluator.space, evaluator.pruner
    if space.is_sparse:
        return kl_between_sparse(evaluator, levels, other, share)
    start, end = (_at_full_width(pruner, space, space.shape(index)) for index in (levels, other))
    for one, two in zip(start, end, strict=True):
        for kind, output in OUTPUTS.items():
            mine, theirs = getattr(one, kind), getattr(two, kind)
            for name in {f"{output}.weight", f"{output}.bias"} & set(mine):
                mine[name] = mine[name] + share * (theirs[name] - mine[name])
    return evaluator.measure_blocks(start).kl


def kl_between_sparse(evaluator: Evaluator, levels: np.ndarray, other: np.ndarray, share: float) -> float:
    start, end = (pruned_blocks(evaluator.pruner, evaluator.space.shape(index)) for index in (levels, other))
    for one, two in zip(start, end, strict=True):
        for mine, theirs in ((one.attention, two.attention), (one.mlp, two.mlp)):
            mine |= {name: mine[name] + share * (theirs[name] - mine[name]) for name in mine}
    return evaluator.measure_blocks(start).kl


def test_full_width_with_zero_columns_is_the_pruned_model(open_evaluator: Open) -> None:
    evaluator = open_evaluator("gemma3")
    shape = evaluator.space.shape(middle(evaluator))
    wide = evaluator.measure_blocks(_at_full_width(evaluator.pruner, evaluator.space, shape))
    sliced = evaluator.measure_blocks(pruned_blocks(evaluator.pruner, shape))
    assert wide.kl == pytest.approx(sliced.kl, rel=1e-4)
    assert _dense_shape(evaluator.space) == evaluator.space.shape(np.zeros(evaluator.space.num_sites, dtype=int))


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_they_measure_the_pruned_model_itself(family: str, open_evaluator: Open) -> None:
    evaluator = open_evaluator(family)
    levels = middle(evaluator)
    found = evaluator.margins(levels, 1)
    there = evaluator.on(evaluator.preparation.margin_windows(1))
    assert found.kl == pytest.approx(there.measure(evaluator.space.shape(levels)).kl, rel=1e-4)
    assert found.change[np.arange(len(levels)), levels] == pytest.approx(0)
    attention = found.change[[site.kind == "attention" for site in evaluator.space.sites]]
    # Where OLMo 2's attentions lack heads, their norms are not those of more heads.
    assert (np.abs(attention).max(1) > 0).sum() == (0 if family == "olmo2" else len(attention))


def test_a_dropped_sublayer_behind_a_norm_says_nothing(open_evaluator: Open) -> None:
    evaluator = open_evaluator("gemma3")
    levels = middle(evaluator)
    change = evaluator.margins(levels, 0).change
    assert (change[1] == 0).all() and np.isfinite(change).all() and np.abs(change[0]).max() > 0


def test_they_come_with_an_evaluation_and_leave_the_model_alone(open_evaluator: Open) -> None:
    evaluator = open_evaluator("llama")
    levels = tuple(int(v) for v in middle(evaluator))
    plain = evaluator.evaluate(Candidate("0", levels, "made-up"))
    both = evaluator.evaluate(Candidate("1", levels, "made-up", margin_group=0))
    assert both.kl == plain.kl and both.cost == 4 * plain.cost and both.evaluations == 4
    assert len(both.margins) == evaluator.space.levels.size and both.margins_kl > 0
    assert evaluator.measure(evaluator.space.shape(np.zeros(len(levels), dtype=int))).kl == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in evaluator.base.model.parameters())
