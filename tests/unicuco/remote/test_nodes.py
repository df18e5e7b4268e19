"""What a machine lacks of a run is fetched once, checked, and refused with a sentence where it cannot be had."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unicuco import tiny
from unicuco.errors import ModelError, PreparationError
from unicuco.evaluations import Candidate
from unicuco.evaluator import EvaluatorConfig
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.preparation import Preparation, prepare
from unicuco.remote.nodes import find_preparation, open_evaluator, put_preparation
from unicuco.storage import cache_dir

CONFIG = EvaluatorConfig(dtype="float32")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model", "llama")


@pytest.fixture
def prepared(tmp_path: Path, model: Path) -> Preparation:
    """On the driver's disk, which other machines do not see."""
    source = find_model(str(model))
    recipe = tiny.preparation_config(tiny.write_text(tmp_path / "prose.txt"))
    return prepare(load_base_model(source, recipe.dtype), load_tokenizer(source), recipe, root=tmp_path / "driver")


def test_a_machine_without_the_preparation_fetches_it(prepared: Preparation, model: Path, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store/run"
    here = open_evaluator(str(model), prepared.folder, prepared.digest, None, CONFIG)
    put_preparation(uri, prepared)
    away = prepared.folder.rename(tmp_path / "away")
    there = open_evaluator(str(model), prepared.folder, prepared.digest, uri, CONFIG)
    assert there.preparation.folder == cache_dir() / "preparations" / prepared.digest[:24]
    candidate = Candidate("000000", tuple(int(level) for level in here.space.smallest), "prior")
    assert there.evaluate(candidate).kl == here.evaluate(candidate).kl > 0
    assert not (tmp_path / "store/run/preparation/files/reference").exists()
    shutil.rmtree(tmp_path / "store")  # it is fetched once
    assert open_evaluator(str(model), prepared.folder, prepared.digest, uri, CONFIG).num_tokens == here.num_tokens
    away.rename(prepared.folder)


FETCH = """
import sys
from pathlib import Path
from unicuco.remote import nodes
real, fetched = nodes.get_folder, []
nodes.get_folder = lambda *given: fetched.append(1) or real(*given)
assert nodes.find_preparation(Path("/nowhere"), sys.argv[1], sys.argv[2]) is not None
print(len(fetched))
"""


def test_processes_of_one_machine_fetch_it_once(prepared: Preparation, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store/run"
    put_preparation(uri, prepared)
    start = [sys.executable, "-c", FETCH, prepared.digest, uri]
    both = [subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["0", "1"]


def test_another_preparation_at_the_uri_is_not_taken_for_it(prepared: Preparation, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store/run"
    put_preparation(uri, prepared)
    assert find_preparation(Path("/nowhere"), "f" * 64, uri) is None
    assert not (cache_dir() / "preparations" / ("f" * 24)).exists()
    assert find_preparation(prepared.folder, "f" * 64, None) is None


def test_what_a_machine_cannot_get_is_one_sentence(prepared: Preparation, model: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match=r"does not have the preparation \w{12} .* or give --run a URI"):
        open_evaluator(str(model), Path("/nowhere"), prepared.digest, None, CONFIG)
    with pytest.raises(PreparationError, match="does not have the preparation"):
        open_evaluator(str(model), Path("/nowhere"), prepared.digest, f"file://{tmp_path}/empty", CONFIG)
    with pytest.raises(ModelError, match=r"does not have the base model: no folder or file at /nowhere/model\. Put it"):
        open_evaluator("/nowhere/model", prepared.folder, prepared.digest, None, CONFIG)


def test_a_base_model_at_a_uri_is_fetched_once_and_is_the_same(model: Path, tmp_path: Path) -> None:
    (model / "code.py").write_text("raise SystemExit")
    uri = model.rename(tmp_path / "elsewhere").as_uri()
    found = find_model(uri)
    assert found.spec == uri and found.folder.parent == cache_dir() / "models"
    assert not (found.folder / "code.py").exists()
    assert found.digest == find_model(str(tmp_path / "elsewhere")).digest
    before = (found.folder / "config.json").stat().st_ino
    assert (find_model(uri).folder / "config.json").stat().st_ino == before
    with pytest.raises(ModelError, match="No base model at file:///nowhere"):
        find_model("file:///nowhere")
    with pytest.raises(ModelError, match=r"No GGUF file at memory://nowhere/x\.gguf"):
        find_model("memory://nowhere/x.gguf")
