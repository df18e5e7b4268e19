"""Training a tiny super-network: its slices get better on fresh text, and the whole house takes it as a base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.unicuco import tiny
from unicuco.assess import assess
from unicuco.errors import CheckpointError, ModelError, SupernetError
from unicuco.evaluations import EvaluationLog
from unicuco.evaluator import Evaluator
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.load import load_base_model
from unicuco.models.source import find_model
from unicuco.preparation import Preparation, prepare
from unicuco.request import Request
from unicuco.space import SpaceConfig
from unicuco.stratnet import StratNetConfig
from unicuco.supernet import SupernetConfig, SupernetReport, train_supernet
from unicuco.teacher import find_teacher

SETTINGS: dict[str, Any] = {
    "steps": 120, "rank": 16, "learning_rate": 5e-3, "batch": 4, "window_length": 32, "heldout_windows": 16,
    "dtype": "float32", "kept_low": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_text(tmp_path_factory.mktemp("supernet") / "words.txt", words=30_000)


@pytest.fixture(scope="module")
def trained(
    model_folder: Callable[[str], Path], long_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> SupernetReport:
    config = SupernetConfig(corpus=str(long_text), **SETTINGS)
    recipe = tiny.preparation_config(long_text)
    return train_supernet(str(model_folder("llama")), tmp_path_factory.mktemp("done") / "super", config, recipe)


def test_slices_of_all_sizes_get_better_on_fresh_text(trained: SupernetReport) -> None:
    whole, *smaller = trained.sizes
    assert whole.kept == 1 and whole.kl_before == pytest.approx(0, abs=1e-6)
    assert [figures.kept for figures in smaller] == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert all(figures.kl_after < figures.kl_before for figures in smaller[1:])
    assert all(figures.kl_after < 0.95 * figures.kl_before for figures in smaller[2:])
    assert whole.kl_after < smaller[2].kl_after


def test_it_is_a_plain_model_that_says_where_it_comes_from(
    trained: SupernetReport, model_folder: Callable[[str], Path]
) -> None:
    about = json.loads((trained.folder / "unicuco.json").read_text(encoding="utf-8"))
    assert about["supernet"]["teacher"]["digest"] == find_model(str(model_folder("llama"))).digest
    assert about["supernet"]["steps"] == 120 and about["verification"]["max_abs_diff"] < 1e-3
    assert not list(trained.folder.glob("*.py")) and not list(trained.folder.parent.glob(".*"))
    readme = (trained.folder / "README.md").read_text(encoding="utf-8")
    assert "super-network" in readme and "kl_heldout_at_0.7 (measured)" in readme
    plain = AutoModelForCausalLM.from_pretrained(trained.folder)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape == (1, 5)


@pytest.fixture(scope="module")
def pair(trained: SupernetReport, model_folder: Callable[[str], Path], text_file: Path) -> tuple[Evaluator, Evaluator]:
    """Evaluators of the base model and of the super-network, each with a preparation of its own."""

    def evaluator(spec: str) -> Evaluator:
        found: Preparation = prepare(load_base_model(spec), tiny.tokenizer(), tiny.preparation_config(text_file))
        return Evaluator(spec, found.folder, tiny.FLOAT32)

    return evaluator(str(model_folder("llama"))), evaluator(str(trained.folder))


def test_evaluations_compare_it_with_the_model_it_was_trained_from(
    pair: tuple[Evaluator, Evaluator], trained: SupernetReport
) -> None:
    base, network = pair
    dense = base.space.shape(np.zeros(base.space.num_sites, dtype=np.int64))
    assert base.measure(dense).kl == pytest.approx(0, abs=1e-6)
    assert network.measure(dense).kl > 1e-4  # training moved it away from its teacher
    (alone,) = assess(str(trained.folder), texts=str(trained_text(network)), tokens=256, window_length=32,
                      dtype="float32")[1:]  # fmt: skip
    assert alone.texts[0].kl is not None and alone.texts[0].kl > 1e-4
    levels = tiny.some_strategies(base.space, 6)
    before = np.mean([base.measure(base.space.shape(row)).kl for row in levels])
    after = np.mean([network.measure(network.space.shape(row)).kl for row in levels])
    assert after < before
    row = levels[0]
    margins = network.margins(row, 0)
    found = network.on(network.preparation.margin_windows(0)).measure(network.space.shape(row))
    assert margins.kl == pytest.approx(found.kl, rel=1e-3)


def test_a_learner_measures_the_whole_network_of_a_super_network_first(
    pair: tuple[Evaluator, Evaluator], trained: SupernetReport, tmp_path: Path
) -> None:
    teacher = find_teacher(find_model(str(trained.folder)))
    assert teacher is not None
    network = pair[1]
    about = {"model": {"teacher": {"spec": teacher.spec, "digest": teacher.digest}}}
    config = LearnerConfig(evaluations=30, stratnet=StratNetConfig(width=8, steps=5))
    learner = Learner(
        network.space, network.preparation.damage, config, EvaluationLog(tmp_path / "log"), provenance=about
    )
    while not learner.finished():
        for candidate in learner.ask(1):
            learner.tell(network.evaluate(candidate))
        if learner.needs_training():
            learner.train()
    first, *_ = learner.log.read()
    assert first.origin == "whole" and first.kept == 1 and first.kl > 1e-4
    (answer,) = learner.policy().answer([Request(kept=1.0)])
    assert answer.kept == 1 and answer.kl_low <= first.kl <= answer.kl_high


def trained_text(network: Evaluator) -> str:
    return network.preparation.config.calibration.domains[0].source


def test_a_killed_training_ends_as_an_unbroken_one(
    trained: SupernetReport, model_folder: Callable[[str], Path], long_text: Path, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(done: int, total: int, kl: float) -> None:
        if done == 65:
            raise KilledError

    config = SupernetConfig(corpus=str(long_text), **SETTINGS | {"save_every": 50})
    arguments = (str(model_folder("llama")), tmp_path / "super", config, tiny.preparation_config(long_text))
    with pytest.raises(KilledError):
        train_supernet(*arguments, progress=kill)
    assert not (tmp_path / "super").exists()
    again = train_supernet(*arguments)
    assert again.training.resumed_at == 50
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (again.folder, trained.folder))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_cannot_be_is_refused(
    trained: SupernetReport, model_folder: Callable[[str], Path], long_text: Path, tmp_path: Path
) -> None:
    config = SupernetConfig(corpus=str(long_text), **SETTINGS)
    recipe = tiny.preparation_config(long_text)
    with pytest.raises(CheckpointError, match="exists already"):
        train_supernet(str(model_folder("llama")), trained.folder, config, recipe)
    with pytest.raises(SupernetError, match="super-network already"):
        train_supernet(str(trained.folder), tmp_path / "twice", config, recipe)
    depth = tiny.preparation_config(long_text, space=SpaceConfig(pruner="depth"))
    with pytest.raises(SupernetError, match="'width'"):
        train_supernet(str(model_folder("llama")), tmp_path / "deep", config, depth)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_is_gone_or_changed_is_named(
    trained: SupernetReport, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.folder, copy)
    about = json.loads((copy / "unicuco.json").read_text(encoding="utf-8"))
    about["supernet"]["teacher"]["spec"] = str(tmp_path / "nowhere")
    (copy / "unicuco.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(SupernetError, match="not there"):
        find_teacher(find_model(str(copy)))
    about["supernet"]["teacher"]["spec"] = str(model_folder("qwen2"))
    (copy / "unicuco.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(SupernetError, match="other content now"):
        find_teacher(find_model(str(copy)))
    assert find_teacher(find_model(str(model_folder("llama")))) is None
    assert issubclass(SupernetError, Exception) and not issubclass(SupernetError, ModelError)
