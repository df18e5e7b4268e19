"""Tensors of a Hugging Face folder, read one by one into memory of their own.

Not by mapping the files: pages of a mapped file count as memory until it is closed, and opening one parses the header
of all its tensors, hundreds of times for a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unicuco.checkpoint.shards import DTYPE_NAMES, INDEX
from unicuco.errors import ModelError

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        begin: first byte, from the start of the file.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    def read(self, dtype: torch.dtype) -> Tensor:
        """The tensor in ``dtype``.

        Raises:
            ModelError: the file is gone, or shorter than it says.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if tensor.numel() == 0:
            return tensor.to(dtype)
        place: Any = tensor.view(-1).view(torch.uint8).numpy()
        try:
            with open(self.path, "rb") as file:
                file.seek(self.begin)
                count = file.readinto(place)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if count < len(place):
            raise _unreadable(self.path, f"it ends within {self.name}")
        return tensor.to(dtype)


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of a Hugging Face folder each tensor is in.

    Raises:
        ModelError: there are no weights, or they cannot be read.
    """
    try:
        if (folder / INDEX).is_file():
            places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in places.items()}
        path = folder / "model.safetensors"
        return dict.fromkeys(_header(path)[0], path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The weights in {folder} cannot be read: {error}.") from error


def find_tensors(files: dict[str, Path], names: Iterable[str]) -> dict[str, StoredTensor] | None:
    """Those of ``names`` that are in ``files``; ``None`` where one of them is of a dtype that is not read here.

    Raises:
        ModelError: a file cannot be read, or lacks what is said to be in it.
    """
    headers: dict[Path, tuple[dict[str, Any], int]] = {}
    found = {}
    for name in names:
        if (path := files.get(name)) is None:
            continue
        try:
            if path not in headers:
                headers[path] = _header(path)
            entries, start = headers[path]
            kind, shape = entries[name]["dtype"], tuple(entries[name]["shape"])
            begin, end = entries[name]["data_offsets"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
        if (dtype := _DTYPES.get(kind)) is None:
            return None
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise _unreadable(path, f"{name} has another size than its shape")
        found[name] = StoredTensor(path, name, dtype, shape, start + begin)
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What is in a safetensors file, and where its numbers begin."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError("no safetensors file")
        entries = json.loads(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError("no safetensors file")
    entries.pop("__metadata__", None)
    return entries, 8 + length


def _unreadable(path: Path, why: object) -> ModelError:
    return ModelError(f"The weights in {path} cannot be read: {why}.")
