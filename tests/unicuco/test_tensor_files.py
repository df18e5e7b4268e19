"""Tensors read one by one out of safetensors files are what safetensors reads, and broken files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unicuco.checkpoint.files import find_tensors, tensor_files
from unicuco.errors import ModelError

TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.randn(5).bfloat16(),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(1.5, dtype=torch.float16),
}


def test_each_is_what_was_written_in_the_dtype_asked_for(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = tensor_files(tmp_path)
    assert files == dict.fromkeys(TENSORS, tmp_path / "model.safetensors")
    found = find_tensors(files, [*TENSORS, "missing"])
    assert found is not None and found.keys() == TENSORS.keys()
    for name, stored in found.items():
        assert stored.shape == TENSORS[name].shape
        assert torch.equal(stored.read(stored.dtype), TENSORS[name])
        read = stored.read(torch.float32)
        assert read.dtype == torch.float32 and torch.equal(read, TENSORS[name].float())


def test_a_dtype_that_is_not_known_is_left_to_others(tmp_path: Path) -> None:
    save_file(TENSORS | {"f8": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    files = tensor_files(tmp_path)
    assert find_tensors(files, ["a", "f8"]) is None
    assert find_tensors(files, ["a"]) is not None


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    found = find_tensors(tensor_files(tmp_path), TENSORS)
    assert found is not None
    path.write_bytes(path.read_bytes()[:-8])
    last = max(found.values(), key=lambda stored: stored.begin)
    with pytest.raises(ModelError, match=f"cannot be read: it ends within {last.name}"):
        last.read(torch.float32)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 16, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read: no safetensors file"):
        tensor_files(tmp_path)
