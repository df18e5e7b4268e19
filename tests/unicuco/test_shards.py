"""Weights written tensor by tensor are the files that transformers and safetensors write of the whole model."""

from __future__ import annotations

import errno
import hashlib
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from unicuco.checkpoint import shards
from unicuco.checkpoint.shards import INDEX, Spec, check_shard_size, write_shards
from unicuco.errors import CheckpointError

TENSORS = {
    "b.weight": torch.randn(7, 5).bfloat16(),
    "a.weight": torch.randn(3, 4),
    "größe": torch.arange(6).view(2, 3),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(1.5, dtype=torch.float16),
    "flags": torch.tensor([True, False, True]),
    "slice": torch.randn(8, 8)[:, :3],
}


def specs(tensors: dict[str, torch.Tensor]) -> dict[str, Spec]:
    return {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


@pytest.mark.parametrize("batch", [None, 1, 50])
def test_one_file_is_what_safetensors_writes(batch: int | None, tmp_path: Path, monkeypatch) -> None:
    if batch:  # many batches, and the disk is waited for between them
        monkeypatch.setattr(shards, "_BATCH", batch)
        monkeypatch.setattr(shards, "_SYNCED", 2 * batch)
    whole = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(whole, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found = write_shards(tmp_path, specs(TENSORS), TENSORS.__getitem__)
    written = (tmp_path / "model.safetensors").read_bytes()
    assert written == (tmp_path / "theirs.safetensors").read_bytes()
    assert found == {"model.safetensors": {"sha256": hashlib.sha256(written).hexdigest(), "bytes": len(written)}}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, TENSORS[name])


@pytest.mark.parametrize("size", ["5GB", "60KB", "1KB"])
def test_files_and_index_are_what_transformers_saves(size: str, tmp_path: Path) -> None:
    """Eleven layers: by name the eleventh comes before the third."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=11, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    (tmp_path / "ours").mkdir()
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    found = write_shards(tmp_path / "ours", specs(model.state_dict()), model.state_dict().__getitem__, size)
    files = sorted(path.name for path in (tmp_path / "theirs").glob("model*"))
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == files
    for name in files:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    assert set(files) - {INDEX} == set(found)


def test_every_tensor_is_asked_for_once_and_a_layers_in_a_row(tmp_path: Path) -> None:
    names = [f"layers.{i}.{part}" for i in range(12) for part in ("z", "a.weight", "m")]
    tensors = {name: torch.ones(4) for name in names}
    asked: list[str] = []

    def tensor(name: str) -> torch.Tensor:
        asked.append(name)
        return tensors[name]

    write_shards(tmp_path, specs(tensors), tensor)
    assert sorted(asked) == sorted(names)
    layers = [name.split(".")[1] for name in asked]
    assert sum(one != two for one, two in pairwise(layers)) == 11


def test_a_disk_that_fails_while_weights_are_written_is_told(tmp_path: Path, monkeypatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        write_shards(tmp_path, specs(TENSORS), TENSORS.__getitem__)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3), torch.zeros(3, 2).bfloat16()])
def test_a_tensor_that_is_not_as_announced_is_refused(wrong: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit the layout: x is \[\d, \d\] \w+, not \[3, 2\] float32"):
        write_shards(tmp_path, {"x": Spec(torch.float32, (3, 2))}, lambda name: wrong)


@pytest.mark.parametrize("text", ["5", "many", "GB", "-1GB", "0MB", ""])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(CheckpointError, match="is no size of a file; write 5GB"):
        check_shard_size(text)
