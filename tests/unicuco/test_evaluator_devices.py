"""Base models over several devices: the numbers of one, and nothing that is left behind on another.

Without GPUs this is shown in two ways. Two names of one CPU (``cpu,cpu``) run all of it on a real device. Pretended
devices (tests/unicuco/pretend.py) are strict about each other as GPUs are: a tensor that is not where it is needed ends
the test. What GPUs alone can show is in test_evaluator_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from tests.unicuco.pretend import MixedDevicesError, pretended_devices
from tests.unicuco.tiny import measured, some_strategies
from unicuco.assess import assess
from unicuco.baselines.influence import block_influence
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.verify import reference_logits
from unicuco.errors import ModelError
from unicuco.evaluations import Candidate
from unicuco.evaluator import Evaluator, EvaluatorConfig, Measurement
from unicuco.models.load import load_base_model
from unicuco.preparation import Preparation, prepare
from unicuco.pruners.base import pruned_blocks
from unicuco.space import SpaceConfig

Open = Callable[..., Evaluator]
ONE, TWO, THREE = "cpu:0,cpu:0", "cpu:0,cpu:1", "cpu:0,cpu:1,cpu:2"


@pytest.fixture
def open_evaluator(model_folder: Callable[[str], Path], prepared: Callable[..., Preparation]) -> Open:
    def build(device: str, family: str = "llama", space: SpaceConfig | None = None, **config: Any) -> Evaluator:
        settings = EvaluatorConfig.model_validate({"dtype": "float32", "device": device} | config)
        return Evaluator(str(model_folder(family)), prepared(family, space).folder, settings)

    return build


def same(found: Measurement, expected: Measurement) -> bool:
    """All figures to the last bit."""
    names = [field.name for field in fields(Measurement) if field.name != "seconds"]
    return all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in names)


def random_levels(evaluator: Evaluator) -> np.ndarray:
    return some_strategies(evaluator.space, 1)[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_cpu_under_two_names_measures_what_it_does_under_one(family: str, dtype: str, open_evaluator: Open) -> None:
    plain, spread = (open_evaluator(device, family, dtype=dtype) for device in ("cpu", "cpu,cpu"))
    assert any(module._forward_pre_hooks for module in spread.base.model.modules())
    for levels in some_strategies(plain.space, 3):
        assert same(measured(spread, levels), measured(plain, levels))
    found, expected = (evaluator.margins(levels, 0) for evaluator in (spread, plain))
    assert found.kl == expected.kl and np.array_equal(found.change, expected.change)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_several_devices_measure_what_one_does(family: str, open_evaluator: Open) -> None:
    plain = open_evaluator("cpu", family)
    with pretended_devices():
        one, two, three = (open_evaluator(device, family) for device in (ONE, TWO, THREE))
        for levels in some_strategies(plain.space, 2):
            found = measured(two, levels)
            assert same(found, measured(one, levels)) and same(found, measured(three, levels))
            assert found.kl == pytest.approx(measured(plain, levels).kl, rel=1e-5)
        candidate = Candidate("0", tuple(int(level) for level in levels), "made-up", margin_group=0)
        evaluation, expected = two.evaluate(candidate), one.evaluate(candidate)
        assert (evaluation.device, expected.device) == ("cpu:0,cpu:1", "cpu:0")
        assert evaluation.margins == expected.margins and evaluation.margins_kl == expected.margins_kl
        dense = measured(two, np.zeros(len(levels), dtype=int))
        assert abs(dense.kl) <= 1e-5, "the base model came back whole"
    theirs = plain.evaluate(candidate)
    assert evaluation.margins_kl == pytest.approx(theirs.margins_kl, rel=1e-5)
    np.testing.assert_allclose(evaluation.margins, theirs.margins, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # a head that is tied to the embeddings, and one that is not
@pytest.mark.parametrize("reference_bytes", [0, 1 << 30], ids=["hidden states", "log-probabilities"])
def test_fresh_windows_and_the_reference_on_them(family: str, reference_bytes: int, open_evaluator: Open) -> None:
    plain = open_evaluator("cpu", family)
    fresh = plain.preparation.margin_windows(1)
    plain = plain.on(fresh)
    with pretended_devices():
        spread = open_evaluator(TWO, family, reference_bytes=reference_bytes).on(fresh)
        for levels in some_strategies(plain.space, 1)[-3:]:
            assert measured(spread, levels).kl == pytest.approx(measured(plain, levels).kl, rel=1e-5)


def test_dropping_whole_blocks(open_evaluator: Open) -> None:
    space = SpaceConfig(pruner="depth", sites="block")
    plain = open_evaluator("cpu", "gemma3", space)
    with pretended_devices():
        spread = open_evaluator(TWO, "gemma3", space)
        for levels in np.array(np.meshgrid(*[[0, 1]] * plain.space.num_sites)).reshape(plain.space.num_sites, -1).T:
            assert measured(spread, levels).kl == pytest.approx(measured(plain, levels).kl, rel=1e-5, abs=1e-7)


def test_out_of_memory_on_the_second_device_halves_what_runs_at_once(open_evaluator: Open) -> None:
    sizes: list[int] = []

    def full_above_one_window(module: Any, args: Any) -> None:
        assert str(args[0].device) == "cpu:1"
        sizes.append(len(args[0]))
        if sizes[-1] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (as a GPU would say)")

    with pretended_devices():
        evaluator = open_evaluator(TWO)
        expected = measured(evaluator, random_levels(evaluator))
        evaluator.base.model.get_decoder().norm.register_forward_pre_hook(full_above_one_window)
        found = measured(evaluator, random_levels(evaluator))
    assert found.kl == pytest.approx(expected.kl, rel=1e-4)
    assert max(sizes) > 1 and sizes[-4:] == [1, 1, 1, 1]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_preparation_made_over_two_devices_is_the_same(
    family: str,
    model_folder: Callable[[str], Path],
    prepared: Callable[..., Preparation],
    text_file: Path,
    tmp_path: Path,
) -> None:
    expected = prepared(family)
    with pretended_devices():
        base = load_base_model(str(model_folder(family)), device=TWO)
        found = prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file), root=tmp_path)
    assert found.digest == expected.digest
    np.testing.assert_allclose(found.damage, expected.damage, rtol=1e-4, atol=1e-7)
    for name, order in expected.orders.items():
        assert torch.equal(found.orders[name], order)


def test_checkpoints_and_their_check(
    open_evaluator: Open, tmp_path: Path, model_folder: Callable[[str], Path], text_file: Path
) -> None:
    evaluator = open_evaluator("cpu,cpu", "qwen2")
    levels = random_levels(evaluator)
    shape = evaluator.space.shape(levels)
    written = write_checkpoint(evaluator.base, tiny.tokenizer(), evaluator.pruner, shape, tmp_path / "c")
    assert written.verification is not None and written.verification.passed
    ids = torch.arange(3, 19).view(2, 8)
    expected = reference_logits(evaluator.base, pruned_blocks(evaluator.pruner, shape), ids)
    text = {"texts": str(text_file), "tokens": 256, "window_length": 32, "dtype": "float32"}
    plain = assess(str(tmp_path / "c"), str(model_folder("llama")), **text)
    with pretended_devices():
        spread = open_evaluator(TWO, "qwen2")
        found = reference_logits(spread.base, pruned_blocks(spread.pruner, shape), ids)
        # The heads of the two are on different devices: one is tied, the other is not.
        judged = assess(str(tmp_path / "c"), str(model_folder("llama")), device=TWO, **text)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert judged[1].texts[0].kl == pytest.approx(plain[1].texts[0].kl, rel=1e-4)


def test_block_influence(open_evaluator: Open) -> None:
    plain = open_evaluator("cpu")
    tokens = plain.windows.tokens
    with pretended_devices():
        spread = open_evaluator(TWO)
        found = block_influence(spread.base.model, tokens)
    np.testing.assert_allclose(found, block_influence(plain.base.model, tokens), rtol=1e-5)


def test_a_transfer_that_is_missing_is_found(open_evaluator: Open) -> None:
    """The proof that the tests above could fail: without one hook, or with targets beside the wrong head, they do."""
    with pretended_devices():
        evaluator = open_evaluator(TWO, "qwen2")
        levels = random_levels(evaluator)
        layer = evaluator.base.model.get_decoder().layers[-1]
        hooks = dict(layer._forward_pre_hooks)
        layer._forward_pre_hooks.clear()
        for call in (lambda: measured(evaluator, levels), lambda: evaluator.margins(levels, 0)):
            with pytest.raises(MixedDevicesError):
                call()
        layer._forward_pre_hooks.update(hooks)
        measured(evaluator, levels)
        evaluator._targets = evaluator._targets.to("cpu:0")
        with pytest.raises(MixedDevicesError):
            measured(evaluator, levels)


def test_more_devices_than_blocks(open_evaluator: Open) -> None:
    with pytest.raises(ModelError, match="3 blocks cannot be spread over 4 devices"):
        open_evaluator("cpu,cpu,cpu,cpu")
