"""Writing a checkpoint: in a scratch folder, reloaded and compared there, and only then put in its place."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unicuco.checkpoint.card import PROVENANCE, CheckpointCard, CheckpointSize, model_card, provenance
from unicuco.checkpoint.layout import clean_config, hetero_config, hetero_tensors, padded_tensors, regroup
from unicuco.checkpoint.verify import Verification, check_reload, probe_tokens, reference_logits
from unicuco.errors import CheckpointError
from unicuco.models.load import BaseModel
from unicuco.pruners.base import PrunedBlock, Pruner, pruned_blocks
from unicuco.space import Shape
from unicuco.storage import atomic_folder, write_json

Layout = Literal["hetero", "padded"]
LAYOUTS: tuple[Layout, ...] = ("hetero", "padded")


@dataclass(frozen=True)
class CheckpointReport:
    """What was written.

    Attributes:
        seconds: everything, reloading included.
        verification: ``None`` when it was not asked for.
    """

    folder: Path
    layout: Layout
    size: CheckpointSize
    files: dict[str, dict[str, Any]]
    verification: Verification | None
    seconds: float


def write_checkpoint(
    base: BaseModel,
    tokenizer: Any,
    pruner: Pruner,
    shape: Shape,
    target: Path,
    layout: Layout = "hetero",
    card: CheckpointCard | None = None,
    verify: bool = True,
    replace: bool = False,
    max_shard_size: str = "5GB",
) -> CheckpointReport:
    """Writes ``base`` pruned to ``shape`` as a folder that transformers loads.

    Args:
        tokenizer: saved beside the weights; ``None`` leaves it out.
        target: a folder that does not exist, unless ``replace``.
        card: what the README and ``unicuco.json`` are to say beyond the shapes and sizes.
        verify: load it in a fresh process and compare logits with the pruned model's before keeping it.

    Raises:
        CheckpointError: ``target`` exists, the layout cannot hold this strategy, or the reloaded logits differ.
        DiskFullError: the disk filled up. Nothing is left behind in any of these cases.
    """
    began = time.monotonic()
    target, card = Path(target), card or CheckpointCard()
    if layout not in LAYOUTS:
        raise CheckpointError(f"'{layout}' is no layout; use {' or '.join(LAYOUTS)}.")
    if target.exists() and not replace:
        raise CheckpointError(f"{target} exists already; choose another folder, or say that it may be replaced.")
    if target.exists() and not (target.is_dir() and _is_checkpoint(target)):
        raise CheckpointError(f"{target} is no checkpoint of ours, so it is not replaced; choose another folder.")
    blocks = [_cast(block, base.model.dtype) for block in pruned_blocks(pruner, shape)]
    model = _model(base, blocks, shape, layout)
    size = _size(base, model, shape)
    dtype = str(base.model.dtype).removeprefix("torch.")
    verification = None
    with _taken(target), atomic_folder(target, replace=replace) as scratch:
        _save(model, tokenizer, scratch, layout, max_shard_size)
        if verify:
            tokens = probe_tokens(base.geometry.vocab_size)
            expected = reference_logits(base, blocks, tokens)
            verification = check_reload(scratch, tokens, expected, layout == "hetero" or _is_remote(model))
        about = (base.source, base.geometry, pruner.name, layout, dtype, shape, size, card, verification)
        (scratch / "README.md").write_text(model_card(*about), encoding="utf-8")
        record = provenance(*about, scratch)
        write_json(scratch / PROVENANCE, record)
    return CheckpointReport(target, layout, size, record["files"], verification, time.monotonic() - began)


def _cast(block: PrunedBlock, dtype: torch.dtype) -> PrunedBlock:
    attention = {name: tensor.detach().to(dtype) for name, tensor in block.attention.items()}
    mlp = {name: tensor.detach().to(dtype) for name, tensor in block.mlp.items()}
    return dataclasses.replace(block, attention=attention, mlp=mlp)


def _model(base: BaseModel, blocks: list[PrunedBlock], shape: Shape, layout: Layout) -> Any:
    """The pruned model, sharing whole tensors with the base model and the pruner; good for saving only."""
    if layout == "hetero":
        from unicuco.models.hetero import model_class

        layers = regroup(shape)
        config = hetero_config(base, shape, layers)
        kind = model_class(base.geometry.family)
        tensors = hetero_tensors(base, blocks, layers)
    else:
        config, kind = clean_config(base), type(base.model)
        tensors = padded_tensors(base, blocks)
    with torch.device("meta"):
        model = kind(config)
    try:
        model.load_state_dict({name: _compact(tensor) for name, tensor in tensors.items()}, assign=True)
    except RuntimeError as error:  # torch lists every name and shape that does not fit
        raise CheckpointError(f"The pruner's tensors do not fit the '{layout}' layout: {error}") from error
    model.tie_weights()
    model.generation_config = base.model.generation_config
    return model


def _compact(tensor: Tensor) -> torch.nn.Parameter:
    """``tensor`` in storage of its own size: shards are cut by storage, and a slice would count as its whole matrix."""
    tensor = tensor.detach().contiguous()
    if tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()
    return torch.nn.Parameter(tensor, requires_grad=False)


def _size(base: BaseModel, model: Any, shape: Shape) -> CheckpointSize:
    geometry = base.geometry
    left = sum(
        block.attention_params(groups) + block.mlp_params(neurons)
        for block, groups, neurons in zip(geometry.blocks, shape.groups, shape.neurons, strict=True)
    )
    stored = {id(parameter): parameter for parameter in model.parameters()}.values()
    params = geometry.fixed_params + left
    return CheckpointSize(
        params=params,
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in stored),
        kept=left / geometry.block_params,
        ratio=params / geometry.params,
        params_stored=sum(parameter.numel() for parameter in stored),
    )


def _save(model: Any, tokenizer: Any, folder: Path, layout: Layout, max_shard_size: str) -> None:
    _make_savable(model)
    with _quiet():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if layout == "hetero":
        code = Path(__file__).parents[1] / "models" / "hetero"
        for file in code.glob("*_unicuco.py"):
            shutil.copyfile(file, folder / file.name)
    readable = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):  # safetensors makes them readable by nobody else, whatever the umask
        weights.chmod(readable)


def _is_remote(model: Any) -> bool:
    """Whether its class came with the base model's files: whoever loaded it has allowed that code to run."""
    return type(model).__module__.startswith("transformers_modules.")


def _make_savable(model: Any) -> None:
    """Some published models carry sampling settings without ``do_sample``; transformers loads those but won't save."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config = type(model.generation_config).from_dict(
            model.generation_config.to_dict() | {"do_sample": True}
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar over shards, of which there is mostly one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is_checkpoint(folder: Path) -> bool:
    return (folder / PROVENANCE).is_file() or not any(folder.iterdir())


@contextlib.contextmanager
def _taken(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:  # someone else put a folder there while this one was being written
        raise CheckpointError(
            f"{target} appeared while the checkpoint was being written; it was left alone."
        ) from error
