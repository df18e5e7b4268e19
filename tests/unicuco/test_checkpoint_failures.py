"""What goes wrong while a checkpoint is written leaves nothing behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.unicuco.checkpoint_models import PrefixPruner, tiny_model
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.shards import write_shards
from unicuco.checkpoint.verify import check_reload
from unicuco.errors import CheckpointError, DiskFullError
from unicuco.pruners.base import PrunedBlock
from unicuco.space import Shape

SHAPE = Shape((0, 1, 2, 1), (32, 0, 96, 16))


class FicklePruner(PrefixPruner):
    """Hands out other tensors once the files are written, as a bug in sharing memory would."""

    factor = 1.0

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        found = super().pruned_block(block, groups, neurons)
        return dataclasses.replace(found, mlp={name: self.factor * tensor for name, tensor in found.mlp.items()})


@pytest.mark.parametrize("layout", ["hetero", "padded"])
def test_a_checkpoint_that_reloads_to_other_logits_is_not_kept(layout: str, tmp_path: Path, monkeypatch) -> None:
    import unicuco.checkpoint.write as write

    base = tiny_model("llama")
    pruner = FicklePruner(base)

    def save_then_change(*args: object) -> object:
        digests = write_shards(*args)
        pruner.factor = 1.05
        return digests

    monkeypatch.setattr(write, "write_shards", save_then_change)
    with pytest.raises(CheckpointError, match="logits differ from the pruned model's by up to"):
        write_checkpoint(base, None, pruner, SHAPE, tmp_path / "out", layout)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_does_not_load_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    import unicuco.checkpoint.write as write

    base = tiny_model("llama")

    def save_then_truncate(folder: Path, *rest: object) -> object:
        digests = write_shards(folder, *rest)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        return digests

    monkeypatch.setattr(write, "write_shards", save_then_truncate)
    with pytest.raises(CheckpointError, match="a fresh process could not load it"):
        write_checkpoint(base, None, PrefixPruner(base), SHAPE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nan_logits_fail_the_comparison(tmp_path: Path) -> None:
    base = tiny_model("llama")
    folder = write_checkpoint(base, None, PrefixPruner(base), SHAPE, tmp_path / "out", verify=False).folder
    tokens = torch.tensor([[5, 6]])
    with pytest.raises(CheckpointError, match="differ"):
        check_reload(folder, tokens, torch.full((1, 2, 128), torch.nan), trust_remote_code=True)
    with pytest.raises(CheckpointError, match="logits have shape"):
        check_reload(folder, tokens, torch.zeros(1, 2, 64), trust_remote_code=True)


def test_pruner_tensors_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    class Wrong(PrefixPruner):
        def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
            return super().pruned_block(block, groups, neurons + 16 if neurons == 32 else neurons)

    base = tiny_model("llama")
    with pytest.raises(CheckpointError, match=r"do not fit the layout: model.layers.0"):
        write_checkpoint(base, None, Wrong(base), SHAPE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    """It is saved beside the weights, by another thread."""

    class Unsavable:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("half")
            raise ValueError("no such tokenizer")

    base = tiny_model("llama")
    with pytest.raises(ValueError, match="no such tokenizer"):
        write_checkpoint(base, Unsavable(), PrefixPruner(base), SHAPE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


WRITE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from tests.unicuco.checkpoint_models import PrefixPruner, tiny_model, tiny_tokenizer
from unicuco.checkpoint import write_checkpoint
from unicuco.space import Shape
base = tiny_model("llama")
{limit}
try:
    shape = Shape({groups!r}, {neurons!r})
    write_checkpoint(base, tiny_tokenizer(), PrefixPruner(base), shape, {target!r}, verify=False)
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(3)
"""


def _script(target: Path, limit: str = "") -> str:
    tests = str(Path(__file__).parents[2])
    return WRITE.format(tests=tests, limit=limit, groups=SHAPE.groups, neurons=SHAPE.neurons, target=str(target))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """On a real file system of 200 kB, in a namespace of its own."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "t", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    small, script = tmp_path / "small", tmp_path / "write.py"
    small.mkdir()
    script.write_text(_script(small / "out"))
    mount = f'mount -t tmpfs -o size=200k t "{small}"'
    shell = f'{mount} && "{sys.executable}" "{script}"; code=$?; ls -A "{small}"; exit $code'
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", shell], capture_output=True, text=True)
    assert ran.returncode == 3, ran.stderr[-2000:]
    lines = ran.stdout.splitlines()
    assert lines[0].startswith(f"{DiskFullError.__name__} The disk is full: {small / 'out'} could not be written")
    assert len(lines) == 1  # ls found nothing


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The system cuts the weights file off at 100 kB."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    out = tmp_path / "place"
    out.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_script(out / "out", limit))], capture_output=True, text=True
    )
    assert ran.returncode == 3, ran.stderr[-2000:]
    assert not list(out.iterdir())
