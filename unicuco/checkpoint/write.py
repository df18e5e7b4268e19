"""Writing a checkpoint: block by block into a scratch folder, reloaded and compared there, only then put in place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from unicuco.checkpoint.card import PROVENANCE, CheckpointCard, CheckpointSize, model_card, provenance
from unicuco.checkpoint.layout import (
    clean_config,
    hetero_config,
    hetero_tensors,
    layer_tensors,
    layers_prefix,
    outer_tensors,
    padded_layer,
    regroup,
    stored_names,
    uniform_config,
    uniform_layers,
)
from unicuco.checkpoint.recorded import write_logits
from unicuco.checkpoint.shards import Spec, check_shard_size, write_shards
from unicuco.checkpoint.verify import Verification, check_reload, probe_tokens, reference_logits
from unicuco.errors import CheckpointError
from unicuco.models.load import BaseModel
from unicuco.models.sites import Block, find_blocks
from unicuco.pruners.base import PrunedBlock, Pruner
from unicuco.space import Shape
from unicuco.storage import atomic_folder

Layout = Literal["hetero", "uniform", "padded"]
LAYOUTS: tuple[Layout, ...] = ("hetero", "uniform", "padded")
SHARD_SIZE = "5GB"
"""Of weights files, when nothing else is asked for."""


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
    max_shard_size: str = SHARD_SIZE,
) -> CheckpointReport:
    """Writes ``base`` pruned to ``shape`` as a folder that transformers loads.

    Blocks are pruned when their turn to be written comes, and not kept. The base model may be one whose blocks lie on
    disk (``unicuco.checkpoint.stream``): then no more than one of them is in memory.

    Args:
        tokenizer: saved beside the weights; ``None`` leaves it out.
        target: a folder that does not exist, unless ``replace``.
        card: what the README and ``unicuco.json`` are to say beyond the shapes and sizes.
        verify: load it in a fresh process and compare logits with the pruned model's before keeping it. Prunes every
            block a second time, and the fresh process holds the pruned model.
        max_shard_size: weights are cut into files of at most this size, such as ``5GB``.

    Raises:
        CheckpointError: ``target`` exists, the layout cannot hold this strategy, or the reloaded logits differ.
        DiskFullError: the disk filled up. Nothing is left behind in any of these cases.
    """
    began = time.monotonic()
    target, card = Path(target), card or CheckpointCard()
    if layout not in LAYOUTS:
        raise CheckpointError(f"'{layout}' is no layout; use {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}.")
    check_shard_size(max_shard_size)
    check_target(target, replace)
    blocks = LazyBlocks(pruner, shape, base.model.dtype)
    model, specs, tensor = plan(base, blocks, shape, layout)
    size = _size(base, specs, shape)
    dtype = str(base.model.dtype).removeprefix("torch.")
    verification = None
    with _taken(target), atomic_folder(target, replace=replace) as scratch:
        around = scratch / "around"  # apart: transformers removes weights that it finds where it saves
        with ThreadPoolExecutor(1) as beside:
            saving = beside.submit(_save_around, model, tokenizer, around, layout)
            digests = write_shards(scratch, specs, tensor, max_shard_size)
            saving.result()
        for path in around.iterdir():
            path.rename(scratch / path.name)
        around.rmdir()
        if verify:
            tokens = probe_tokens(base.geometry.vocab_size)
            expected = reference_logits(base, blocks, tokens)
            verification = check_reload(scratch, tokens, expected, layout == "hetero" or _is_remote(model))
            write_logits(scratch, tokens, expected)
        about = (base.source, base.geometry, pruner.name, layout, dtype, shape, size, card, verification)
        (scratch / "README.md").write_text(model_card(*about), encoding="utf-8")
        record = provenance(*about, scratch, digests)
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        (scratch / PROVENANCE).write_text(text, encoding="utf-8")
    return CheckpointReport(target, layout, size, record["files"], verification, time.monotonic() - began)


def check_target(target: Path, replace: bool) -> None:
    """Refuses a folder that is there, or that is not ours to replace.

    Raises:
        CheckpointError: either.
    """
    if target.exists() and not replace:
        raise CheckpointError(f"{target} exists already; choose another folder, or say that it may be replaced.")
    if target.exists() and not (target.is_dir() and _is_checkpoint(target)):
        raise CheckpointError(f"{target} is no checkpoint of ours, so it is not replaced; choose another folder.")


class LazyBlocks(Sequence[PrunedBlock]):
    """Every block of a strategy, pruned when it is asked for and forgotten when the next one is."""

    def __init__(self, pruner: Pruner, shape: Shape, dtype: torch.dtype) -> None:
        self._pruner, self._shape, self._dtype = pruner, shape, dtype
        self._last: tuple[int, PrunedBlock] | None = None

    def __len__(self) -> int:
        return len(self._shape.groups)

    @overload
    def __getitem__(self, index: int) -> PrunedBlock: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PrunedBlock]: ...
    def __getitem__(self, index: int | slice) -> PrunedBlock | Sequence[PrunedBlock]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if self._last is None or self._last[0] != index:
            self._last = None
            found = self._pruner.pruned_block(index, self._shape.groups[index], self._shape.neurons[index])
            self._last = index, _cast(found, self._dtype)
        return self._last[1]


def _cast(block: PrunedBlock, dtype: torch.dtype) -> PrunedBlock:
    attention = {name: tensor.detach().to(dtype) for name, tensor in block.attention.items()}
    mlp = {name: tensor.detach().to(dtype) for name, tensor in block.mlp.items()}
    return dataclasses.replace(block, attention=attention, mlp=mlp)


def plan(
    base: BaseModel, blocks: LazyBlocks, shape: Shape, layout: Layout
) -> tuple[Any, dict[str, Spec], Callable[[str], Tensor]]:
    """The pruned model without its weights, what tensors it has, and how to get each of them.

    A stored layer's tensors are put together when the first of them is asked for.
    """
    prefix = layers_prefix(base.model)
    outer = outer_tensors(base.model)
    sources = find_blocks(base.model)
    if layout != "padded":
        if layout == "uniform":
            layers = uniform_layers(base, shape)
            config, kind = uniform_config(base, shape, layers), type(base.model)
        else:
            from unicuco.models.hetero import model_class

            layers = regroup(shape)
            config, kind = hetero_config(base, shape, layers), model_class(base.geometry.family)
        ghosts = [_ghost(block, base.model.dtype) for block in sources]
        names = hetero_tensors(base, ghosts, layers)

        def layer(index: int) -> dict[str, Tensor]:
            return layer_tensors(sources, blocks, layers[index])
    else:
        config, kind = clean_config(base), type(base.model)
        names = stored_names(base.model)

        def layer(index: int) -> dict[str, Tensor]:
            pruned = blocks[index]  # first: it brings the block's own weights
            return padded_layer(sources[index], pruned, base.model.dtype)

    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model: Any = kind(config)
    model.to(base.model.dtype)  # what its configuration is to say
    model.tie_weights()
    model.generation_config = base.model.generation_config
    own = model.state_dict()
    if own.keys() != names.keys():
        raise CheckpointError(f"The layout '{layout}' has no place for {', '.join(sorted(own.keys() ^ names.keys()))}.")
    once = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    specs = {name: Spec(names[name].dtype, tuple(t.shape)) for name, t in own.items() if name in once}
    held: tuple[int, dict[str, Tensor]] = (-1, {})

    def tensor(name: str) -> Tensor:
        nonlocal held
        if not name.startswith(prefix):
            return outer[name]
        place, _, own = name.removeprefix(prefix).partition(".")
        if held[0] != int(place):
            held = (-1, {})
            held = (int(place), layer(int(place)))
        return held[1].pop(own)

    return model, specs, tensor


def _ghost(block: Block, dtype: torch.dtype) -> PrunedBlock:
    """A block of which only names and dtypes are known."""
    attention, mlp = (
        {name: torch.empty(0, 0, dtype=dtype, device="meta") for name in module.state_dict()}
        for module in (block.attention, block.mlp)
    )
    return PrunedBlock(0, 0, attention, mlp)


def _size(base: BaseModel, specs: dict[str, Spec], shape: Shape) -> CheckpointSize:
    geometry = base.geometry
    left = sum(
        block.attention_params(groups) + block.mlp_params(neurons)
        for block, groups, neurons in zip(geometry.blocks, shape.groups, shape.neurons, strict=True)
    )
    params = geometry.fixed_params + left
    return CheckpointSize(
        params=params,
        bytes=sum(spec.bytes for spec in specs.values()),
        kept=left / geometry.block_params,
        ratio=params / geometry.params,
        params_stored=sum(spec.numel for spec in specs.values()),
    )


def _save_around(model: Any, tokenizer: Any, folder: Path, layout: Layout) -> None:
    """Everything but the weights: configuration, tokenizer, code.

    The tokenizer after the configuration: its Rust code lets no other Python run, so hashing should have begun by then.
    """
    _make_savable(model)
    with _quiet():
        model.save_pretrained(folder, state_dict={})  # transformers writes all but tensors, of which there are none
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if layout == "hetero":
        code = Path(__file__).parents[1] / "models" / "hetero"
        for file in code.glob("*_unicuco.py"):
            shutil.copyfile(file, folder / file.name)


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
