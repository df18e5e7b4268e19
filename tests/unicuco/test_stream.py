"""A base model pruned block by block out of its files: the same checkpoint, and no more than a block in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unicuco import tiny
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.card import file_digests
from unicuco.checkpoint.stream import StreamingPruner, open_base_model
from unicuco.errors import PreparationError
from unicuco.models.load import load_base_model
from unicuco.models.source import find_model
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.pruners.build import build_pruner
from unicuco.space import Shape, SpaceConfig

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNICUCO_CACHE", str(tmp_path / "cache"))


def prepared(root: Path, family: str, space: SpaceConfig | None = None) -> tuple[Path, Preparation]:
    folder = tiny.save_model(root / family, family)
    config = tiny.preparation_config(tiny.write_text(root / "words.txt"), space=space, margin_windows=0)
    return folder, prepare(load_base_model(str(folder)), tiny.tokenizer(), config)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layout", ["hetero", "padded"])
def test_the_files_are_those_of_a_model_in_memory(family: str, layout: str, tmp_path: Path) -> None:
    folder, preparation = prepared(tmp_path, family)
    base = load_base_model(str(folder), "bfloat16")
    groups = base.geometry.blocks[0].groups
    shape = Shape((0, groups - 1, groups), (64, 0, 224))  # an MLP before the first attention, an attention alone
    opened = open_base_model(find_model(str(folder)), "bfloat16")
    assert opened is not None and opened.base.geometry == base.geometry
    for name, buffer in base.model.named_buffers():  # in no file: computed, though no weights are drawn
        assert torch.equal(opened.base.model.get_buffer(name), buffer), name
    written = [
        write_checkpoint(model, tiny.tokenizer(), pruner, shape, tmp_path / name, layout, verify=False)  # type: ignore[arg-type]
        for name, model, pruner in (
            ("memory", base, build_pruner(base, preparation)),
            ("disk", opened.base, StreamingPruner(opened, preparation)),
        )
    ]
    assert written[0].files == written[1].files == file_digests(tmp_path / "disk")
    on_meta = sum(parameter.numel() for parameter in opened.base.model.parameters() if parameter.is_meta)
    assert on_meta > opened.base.geometry.block_params / 2  # blocks other than the last are not there


def test_it_is_verified_like_any_other(tmp_path: Path) -> None:
    folder, preparation = prepared(tmp_path, "qwen3", SpaceConfig(pruner="depth"))
    opened = open_base_model(find_model(str(folder)), "float32")
    assert opened is not None
    pruner, shape = StreamingPruner(opened, preparation), Shape((4, 0, 4), (256, 256, 0))
    report = write_checkpoint(opened.base, None, pruner, shape, tmp_path / "c", max_shard_size="100KB")
    assert report.verification is not None and report.verification.passed
    assert len(list(report.folder.glob("model-*.safetensors"))) > 2
    assert report.files == file_digests(report.folder)


def test_weights_in_several_files_and_of_another_dtype_are_read(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path, "llama")
    model = load_base_model(str(folder)).model
    model.save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    for path in (tmp_path / "cut").iterdir():
        path.rename(folder / path.name)
    opened = open_base_model(find_model(str(folder)), "bfloat16")
    assert opened is not None
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(opened.read(name), model.get_parameter(name).bfloat16())


def test_files_that_do_not_hold_the_model_as_it_is_are_not_opened(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("model.", "language_model."): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_base_model(find_model(str(folder)), "float32") is None


def test_the_preparation_of_another_model_is_refused(tmp_path: Path) -> None:
    _, preparation = prepared(tmp_path, "llama")
    other = open_base_model(find_model(str(tiny.save_model(tmp_path / "other", "llama", seed=1))), "float32")
    assert other is not None
    with pytest.raises(PreparationError, match="belongs to another base model"):
        StreamingPruner(other, preparation)


MEMORY = """
import json, sys
from pathlib import Path
import torch
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.reload import peak_bytes as peak
from unicuco.checkpoint.stream import StreamingPruner, open_base_model
from unicuco.models.load import load_base_model
from unicuco.models.source import find_model
from unicuco.preparation import Preparation
from unicuco.pruners.build import build_pruner
from unicuco.space import Shape
import unicuco.models.hetero

torch.set_num_threads(1)
folder, place, target, streamed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "streamed"
torch.ones(64, 64) @ torch.ones(64, 64)
before = peak()
preparation, source = Preparation.open(place), find_model(folder)
if streamed:
    opened = open_base_model(source, "bfloat16")
    base, pruner = opened.base, StreamingPruner(opened, preparation)
else:
    base = load_base_model(source, "bfloat16")
    pruner = build_pruner(base, preparation)
blocks = base.geometry.blocks
shape = Shape(tuple(b.groups // 2 for b in blocks), tuple(b.neurons // 2 for b in blocks))
report = write_checkpoint(base, None, pruner, shape, target, verify=False)
print(json.dumps({"peak": peak() - before, "bytes": report.size.bytes, "dense": 2 * base.geometry.params,
                  "block": 2 * blocks[0].params}))
"""


def in_memory_and_streamed(root: Path, layers: int, ways: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """What ``MEMORY`` finds for a model of so many layers; each has 8 MB in bfloat16, and factors of 9 MB.

    Orders, factors and all but the first layer's weights are made up: for what is in memory it does not matter what
    numbers they are.
    """
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_key_value_heads": 8}
    folder = tiny.save_model(root / f"{layers}", "llama", **sizes, num_hidden_layers=1, head_dim=64)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    first = {name: tensor for name, tensor in weights.items() if ".layers.0." in name}
    for b in range(1, layers):
        weights |= {name.replace(".layers.0.", f".layers.{b}."): tensor.clone() for name, tensor in first.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"num_hidden_layers": layers}))
    opened = open_base_model(find_model(str(folder)), "bfloat16")
    assert opened is not None
    (place := root / f"preparation-{layers}").mkdir()
    widths = [("attention", 8, 512), ("mlp", 2048, 2048)]
    names = [(f"{kind}.{b}", units, inputs) for b in range(layers) for kind, units, inputs in widths]
    save_file({name: torch.arange(units).flip(0) for name, units, _ in names}, place / "order.safetensors")
    save_file({name: torch.eye(inputs) for name, _, inputs in names}, place / "factors.safetensors")
    described = {
        "format": 2,
        "digest": "made up",
        "model": {"digest": opened.base.source.digest},
        "config": PreparationConfig().model_dump(mode="json"),
        "geometry": opened.base.geometry.model_dump(mode="json"),
    }
    (place / "preparation.json").write_text(json.dumps(described))
    found = {}
    for way in ways:
        command = [sys.executable, "-c", MEMORY, str(folder), str(place), str(root / f"{way}-{layers}"), way]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        found[way] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_at_most_a_block_is_in_memory(tmp_path: Path) -> None:
    """A process that holds the model needs its 336 MB; the streaming one a block and factors, of however many."""
    deep = in_memory_and_streamed(tmp_path, 40, ("streamed", "whole"))
    shallow = in_memory_and_streamed(tmp_path, 10, ("streamed",))
    assert file_digests(tmp_path / "streamed-40") == file_digests(tmp_path / "whole-40")
    assert deep["whole"]["peak"] > deep["whole"]["dense"]
    streamed = deep["streamed"]
    assert streamed["peak"] < streamed["bytes"] / 2, deep  # not even the pruned model
    if sys.platform == "linux":
        per_layer = (streamed["peak"] - shallow["streamed"]["peak"]) / 30
        assert per_layer < streamed["block"] / 10, (per_layer, deep, shallow)
