"""Weights as safetensors files, written tensor by tensor as they come, with their digests.

What is to be written is known by name, dtype and shape before the first tensor is there, so headers come first and
nothing is held: not the model, not a file. The files are byte for byte those of ``save_pretrained`` on the whole model
(one file or several with transformers' index), and their SHA-256 is computed on the way, not by reading them again.
Hashing is what takes longest: writing, and the disk's own work, go on beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unicuco.errors import CheckpointError
from unicuco.storage import sync

INDEX = "model.safetensors.index.json"
DTYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
"""In the order in which safetensors lays them out, last first."""
_BATCH = 4 << 20
"""Bytes handed at once to the threads that write and hash; twice that is held, or two tensors where they are larger."""
_SYNCED = 32 << 20
"""Bytes after which the disk is set to work: a file that is whole need not wait for all of them then."""


@dataclass(frozen=True)
class Spec:
    """A tensor to come."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


def check_shard_size(text: str) -> int:
    """``5GB`` and the like in bytes.

    Raises:
        CheckpointError: it is no size.
    """
    from huggingface_hub.serialization._base import parse_size_to_int

    try:
        size = parse_size_to_int(text)
    except ValueError as error:
        raise CheckpointError(f"'{text}' is no size of a file; write 5GB, 500MB or 100KB.") from error
    if size <= 0:
        raise CheckpointError(f"'{text}' is no size of a file; write 5GB, 500MB or 100KB.")
    return size


def write_shards(
    folder: Path, specs: Mapping[str, Spec], tensor: Callable[[str], Tensor], max_shard_size: str = "5GB"
) -> dict[str, dict[str, Any]]:
    """Writes the weights files of a model into ``folder``.

    Args:
        specs: every tensor, in the model's order: files are cut in it.
        tensor: a tensor by its name, called once for each; within a file by name, all of a layer in a row.

    Returns:
        ``{"sha256", "bytes"}`` of every file with weights.

    Raises:
        CheckpointError: a tensor has another shape or dtype than it was to have.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=check_shard_size(max_shard_size),
    )
    digests = {}
    for name, names in split.filename_to_tensors.items():
        order = sorted(names, key=lambda one: (-list(DTYPE_NAMES).index(specs[one].dtype), one))
        header = _header({one: specs[one] for one in order})
        pieces = (_bytes(one, tensor(one), specs[one]) for one in order)
        digests[name] = _write(folder / name, header, pieces)
    if split.is_sharded:
        parameters = sum(spec.numel for spec in specs.values())
        about = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / INDEX).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return digests


def _header(specs: Mapping[str, Spec]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, spec in specs.items():
        end = begin + spec.bytes
        entries[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(name: str, tensor: Tensor, spec: Spec) -> Any:
    """The numbers of ``tensor`` as a buffer; no copy where they lie in a row on the CPU."""
    if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
        found, wanted = (f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in (tensor, spec))
        raise CheckpointError(f"The pruner's tensors do not fit the layout: {name} is {found}, not {wanted}.")
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _write(path: Path, header: bytes, pieces: Iterable[Any]) -> dict[str, Any]:
    """Writes and hashes pieces in two threads, some megabytes at a time, while the next ones are being made.

    A third one waits for the disk meanwhile.
    """
    digest, size, synced = hashlib.sha256(), 0, 0
    with open(path, "wb") as file, ThreadPoolExecutor(3) as pool:
        pending: list[Future[Any]] = []
        syncing: Future[Any] = pool.submit(sync, path)
        for batch in _batches(chain([header], pieces)):
            for future in pending:
                future.result()
            if size - synced >= _SYNCED and syncing.done():
                syncing.result()
                syncing, synced = pool.submit(sync, path), size
            pending = [pool.submit(_each, digest.update, batch), pool.submit(_each, file.write, batch)]
            size += sum(len(piece) for piece in batch)
            del batch  # the next one is made before this name is given to it
        for future in (*pending, syncing):
            future.result()
    return {"sha256": digest.hexdigest(), "bytes": size}


def _batches(pieces: Iterable[Any]) -> Iterator[list[Any]]:
    """``pieces`` in lists of ``_BATCH`` bytes: handing one to a thread costs more than writing a small one."""
    batch: list[Any] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _each(do: Callable[[Any], Any], batch: Iterable[Any]) -> None:
    for piece in batch:
        do(piece)
