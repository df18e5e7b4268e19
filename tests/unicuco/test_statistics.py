"""What is read off the dense model: Gram matrices exactly, output metrics by what they predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from tests.unicuco.reference import divergence, input_grams, projections
from unicuco.calibration import draw_windows
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.models.load import BaseModel
from unicuco.preparation import Preparation
from unicuco.statistics import BlockStatistics, collect_statistics


def collect(base: BaseModel, text_file: Path) -> list[BlockStatistics]:
    windows = draw_windows(tiny.calibration(text_file), tiny.tokenizer(), "calibration")
    return collect_statistics(base.model, windows, 4, lambda stage, done, total: None)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_grams_are_the_mean_outer_product_of_inputs(
    family: str, load: Callable[..., BaseModel], text_file: Path
) -> None:
    windows = draw_windows(tiny.calibration(text_file), tiny.tokenizer(), "calibration")
    expected = input_grams(load(family).model, windows.tokens)
    for found, block in zip(collect(load(family), text_file), expected, strict=True):
        for kind in ("attention", "mlp"):
            torch.testing.assert_close(found.grams[kind].double(), block[kind], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_metrics_are_positive_semidefinite_and_not_nothing(
    family: str, load: Callable[..., BaseModel], text_file: Path
) -> None:
    for found in collect(load(family), text_file):
        for kind in ("attention", "mlp"):
            metric = found.metrics[kind].double()
            assert metric.shape == (64, 64)
            torch.testing.assert_close(metric, metric.T, rtol=1e-3, atol=1e-7)
            values = torch.linalg.eigvalsh(metric)
            assert values[-1] > 1e-4 and values[0] > -1e-5 * values[-1]


def test_nothing_is_left_behind_on_the_model(load: Callable[..., BaseModel], text_file: Path) -> None:
    base = load("llama")
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    collect(base, text_file)
    for module in base.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    for name, parameter in base.model.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad and torch.equal(parameter, before[name])


def test_collecting_twice_gives_the_same(load: Callable[..., BaseModel], text_file: Path) -> None:
    first, second = collect(load("qwen2"), text_file), collect(load("qwen2"), text_file)
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(one.grams[k], two.grams[k]) for k in one.grams)
        assert all(torch.equal(one.metrics[k], two.metrics[k]) for k in one.metrics)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gram_and_metric_together_predict_the_divergence_of_a_small_change(
    family: str, load: Callable[..., BaseModel], text_file: Path
) -> None:
    """KL(dense || W + u vᵀ) is about ½ (u G u)(v H v): along the direction that matters most, and along others."""
    base = load(family)
    windows = draw_windows(tiny.calibration(text_file), tiny.tokenizer(), "calibration")
    statistics = collect_statistics(base.model, windows, 24, lambda stage, done, total: None)
    ids = torch.from_numpy(windows.tokens).long()
    dense = base.model(input_ids=ids).logits.double().log_softmax(-1)
    generator = torch.Generator().manual_seed(0)
    for found, layer in zip(statistics, projections(base.model), strict=True):
        for kind, linear in layer.items():
            metric, gram = found.metrics[kind].double(), found.grams[kind].double()
            vectors = torch.linalg.eigh(metric).eigenvectors
            seldom = vectors[:, :32] @ torch.randn(32, generator=generator, dtype=torch.float64)
            v = torch.randn(len(gram), generator=generator, dtype=torch.float64)
            weight = linear.weight.data.clone()
            for u in (vectors[:, -1], seldom):
                scale = (0.01 / (0.5 * (u @ metric @ u) * (v @ gram @ v))).sqrt()
                linear.weight.data = (weight.double() + scale * torch.outer(u, v)).float()
                changed = base.model(input_ids=ids).logits.double().log_softmax(-1)
                assert 0.01 / 1.8 < divergence(dense, changed).mean() < 0.01 * 1.8
            linear.weight.data = weight


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_predicted_damage_ranks_single_site_prunings_and_is_of_the_right_size(
    family: str, model_folder: Callable[[str], Path], prepared: Callable[..., Preparation]
) -> None:
    """Kronecker-factored damage against the measured KL, every site at three levels."""
    from scipy.stats import spearmanr

    preparation = prepared(family)
    evaluator = Evaluator(str(model_folder(family)), preparation.folder, EvaluatorConfig(dtype="float32"))
    space = preparation.space
    predicted, measured = [], []
    for site, count in enumerate(space.num_levels):
        for level in sorted({1, int(count) // 2, int(count) - 1}):
            levels = np.zeros(space.num_sites, dtype=int)
            levels[site] = level
            predicted.append(preparation.damage[site, level])
            measured.append(evaluator.measure(space.shape(levels)).kl)
    assert spearmanr(predicted, measured).statistic > 0.9
    assert abs(np.median(np.log(np.array(predicted) / np.array(measured)))) < np.log(2)
