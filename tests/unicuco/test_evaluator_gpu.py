"""Evaluations on a GPU: the same numbers as a CPU's, and less at once when its memory runs out (pretended on a CPU)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from tests.unicuco.tiny import FLOAT32, measured, some_strategies
from unicuco.errors import ModelError
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.preparation import Preparation, prepare

Prepared = Callable[..., Preparation]

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")


def test_out_of_memory_halves_what_runs_at_once(
    model_folder: Callable[[str], Path], prepared: Prepared, llama: Evaluator
) -> None:
    """The forward fails on more than one window, as a full GPU would: the numbers are the same, only slower."""
    evaluator = Evaluator(str(model_folder("llama")), prepared("llama").folder, FLOAT32)
    sizes: list[int] = []

    def full_above_one_window(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (as a GPU would say)")

    decoder = evaluator.base.model.get_decoder()
    handle = decoder.register_forward_pre_hook(full_above_one_window, with_kwargs=True)
    levels = some_strategies(llama.space, 1)[-1]
    found = measured(evaluator, levels)
    assert found.kl == pytest.approx(measured(llama, levels).kl, rel=1e-4)
    assert max(sizes) > 1 and sizes[-4:] == [1, 1, 1, 1]
    sizes.clear()
    measured(evaluator, levels)
    assert sizes == [1, 1, 1, 1], "what was learnt about the memory is kept"
    handle.remove()


def test_a_gpu_too_small_for_one_window_is_an_error(model_folder: Callable[[str], Path], prepared: Prepared) -> None:
    evaluator = Evaluator(str(model_folder("llama")), prepared("llama").folder, FLOAT32)

    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    evaluator.base.model.get_decoder().norm.register_forward_pre_hook(full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        measured(evaluator, np.zeros(evaluator.space.num_sites, dtype=int))


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_measures_what_a_cpu_measures(
    dtype: str, model_folder: Callable[[str], Path], prepared: Prepared, llama: Evaluator
) -> None:
    config = EvaluatorConfig(dtype=dtype, device="cuda")
    evaluator = Evaluator(str(model_folder("llama")), prepared("llama").folder, config)
    tolerance = 1e-3 if dtype == "float32" else 0.05
    for levels in some_strategies(llama.space, 6):
        found, expected = measured(evaluator, levels), measured(llama, levels)
        assert found.kl == pytest.approx(expected.kl, rel=tolerance, abs=0.01 * (dtype == "bfloat16"))
        assert measured(evaluator, levels).kl == found.kl, "not deterministic"
    assert abs(measured(evaluator, np.zeros(llama.space.num_sites, dtype=int)).kl) <= 1e-5


@gpu
@pytest.mark.gpu
def test_a_preparation_made_on_a_gpu_serves_a_cpu(
    model_folder: Callable[[str], Path], text_file: Path, tmp_path: Path, llama: Evaluator
) -> None:
    from unicuco.models.load import load_base_model

    base = load_base_model(str(model_folder("llama")), device="cuda")
    preparation = prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file), root=tmp_path)
    assert preparation.digest == llama.preparation.digest
    np.testing.assert_allclose(preparation.damage, llama.preparation.damage, rtol=0.02, atol=1e-6)
    evaluator = Evaluator(str(model_folder("llama")), preparation.folder, FLOAT32)
    levels = some_strategies(llama.space, 1)[-1]
    assert measured(evaluator, levels).kl == pytest.approx(measured(llama, levels).kl, rel=0.02)


@two_gpus
@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_gpus_measure_what_one_does(
    dtype: str, family: str, model_folder: Callable[[str], Path], prepared: Prepared
) -> None:
    folder = prepared(family).folder
    one, two = (
        Evaluator(str(model_folder(family)), folder, EvaluatorConfig(dtype=dtype, device=device))
        for device in ("cuda:0", "cuda:0,cuda:1")
    )
    places = {str(parameter.device) for parameter in two.base.model.parameters()}
    assert places == {"cuda:0", "cuda:1"}
    for levels in some_strategies(one.space, 3):
        assert measured(two, levels).kl == pytest.approx(measured(one, levels).kl, rel=1e-3, abs=1e-5)
        assert measured(two, levels).kl == measured(two, levels).kl, "not deterministic"
    found, expected = (evaluator.margins(levels, 0) for evaluator in (two, one))
    assert found.kl == pytest.approx(expected.kl, rel=1e-3)
    np.testing.assert_allclose(found.change, expected.change, rtol=0.02, atol=0.01 * expected.kl)
    dense = measured(two, np.zeros(two.space.num_sites, dtype=int))
    assert abs(dense.kl) <= 1e-5, "the base model came back whole"


@two_gpus
@pytest.mark.gpu
def test_each_gpu_holds_its_own_blocks(tmp_path: Path) -> None:
    """What a GPU takes is its share of the weights, not the whole model on its way to the other."""
    from unicuco.models.load import load_base_model

    folder = tiny.save_model(tmp_path / "m", "llama", hidden_size=512, intermediate_size=8192, num_hidden_layers=8)
    devices = [torch.device("cuda:0"), torch.device("cuda:1")]
    for device in devices:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = [torch.cuda.memory_allocated(device) for device in devices]
    model = load_base_model(str(folder), device="cuda:0,cuda:1").model
    whole = sum(parameter.nbytes for parameter in model.parameters())
    taken = [torch.cuda.max_memory_allocated(d) - b for d, b in zip(devices, before, strict=True)]
    assert max(taken) < 0.6 * whole and sum(taken) == pytest.approx(whole, rel=0.02)


@gpu
@pytest.mark.gpu
def test_weights_that_a_gpu_has_no_room_for_are_refused(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unicuco.models import spread
    from unicuco.models.load import load_base_model

    room = spread._free_bytes(torch.device("cuda"))
    about = torch.cuda.get_device_properties(0)
    assert about.is_integrated or (room is not None and 0 < room <= about.total_memory)
    load_base_model(str(model_folder("llama")), device="cuda")
    monkeypatch.setattr(spread, "_free_bytes", lambda device: 1000)
    with pytest.raises(ModelError, match="does not fit"):
        load_base_model(str(model_folder("llama")), device="cuda")
