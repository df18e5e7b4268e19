"""Pruning a base model that is never in memory as a whole: one block at a time, out of its safetensors files.

Embeddings, head and norms are read at once; the projections of a block are read when it is asked for, pruned by the
same pruner as ever, on a model of that one block, and forgotten when another block is asked for.
"""

from __future__ import annotations

import ctypes
import dataclasses
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from unicuco.checkpoint.files import StoredTensor, find_tensors, tensor_files
from unicuco.checkpoint.layout import layers_prefix
from unicuco.errors import ModelError, PreparationError
from unicuco.models.load import DTYPES, BaseModel
from unicuco.models.separate import is_separated
from unicuco.models.sites import Block, check_config, find_blocks, read_geometry
from unicuco.models.source import ModelSource
from unicuco.preparation import Preparation
from unicuco.pruners.base import PrunedBlock, Pruner
from unicuco.pruners.build import build_pruner


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A base model whose blocks lie on disk.

    Attributes:
        base: all of it but the attentions and MLPs of its blocks, which are on the meta device.
    """

    base: BaseModel
    tensors: dict[str, StoredTensor]
    """Where each of its tensors lies."""

    def read(self, name: str) -> Tensor:
        """A tensor in the base model's dtype, in memory of its own."""
        return self.tensors[name].read(self.base.model.dtype)


def open_base_model(source: ModelSource, dtype: str, trust_remote_code: bool = False) -> OpenedModel | None:
    """Opens ``source`` block by block; ``None`` where its files do not hold the model's tensors under their own names.

    (Checkpoints of several modalities and old ones rename theirs when they are loaded, quantised ones compute theirs,
    and those of some families are separated, ``unicuco.models.separate``.)

    Raises:
        ModelError: not a causal language model, or a shape that cannot be pruned.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None or is_separated(config.model_type):
            return None
        check_config(config)
        # Buffers are computed, not read; drawing numbers for no weights took half of all the time.
        with init_empty_weights(include_buffers=False), no_init_weights():
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code
            )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise ModelError(f"{source.spec} does not load as a causal language model: {error}") from error
    model.tie_weights()
    model.eval().requires_grad_(False)
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
    found = find_tensors(tensor_files(source.folder), shapes)
    persistent = set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if found is None or {name: one.shape for name, one in found.items()} != shapes or persistent:
        return None
    in_blocks = {
        id(parameter)
        for block in find_blocks(model)
        for module in (block.attention, block.mlp)
        for parameter in module.parameters()
    }
    for name, parameter in list(model.named_parameters()):
        if id(parameter) not in in_blocks:
            _put(model, name, found[name].read(DTYPES[dtype]))
    model.tie_weights()
    return OpenedModel(BaseModel(source, model, read_geometry(model)), found)


class StreamingPruner:
    """The pruner of a preparation on an opened model.

    A block's own weights, too, are in the model until another block is asked for.
    """

    def __init__(self, opened: OpenedModel, preparation: Preparation) -> None:
        """
        Raises:
            PreparationError: the preparation belongs to another base model.
        """
        base = opened.base
        preparation.check_model(base.source.digest, base.source.spec)
        self.name: str = preparation.config.space.pruner
        self._opened, self._preparation = opened, preparation
        self._blocks = find_blocks(base.model)
        prefix = layers_prefix(base.model)
        self._names = [f"{prefix}{index}" for index in range(len(self._blocks))]
        self._held: tuple[int, Pruner] | None = None

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        """What is left of ``block``, in memory of its own."""
        with torch.no_grad():
            found = self._pruner(block).pruned_block(0, groups, neurons)
        # Slices of whole matrices would keep those in memory when the next block comes.
        attention = {name: _compact(tensor) for name, tensor in found.attention.items()}
        mlp = {name: _compact(tensor) for name, tensor in found.mlp.items()}
        return dataclasses.replace(found, attention=attention, mlp=mlp)

    def _pruner(self, block: int) -> Pruner:
        if self._held is not None:
            held, pruner = self._held
            if held == block:
                return pruner
            self._held = None
            del pruner
            for name in self._tensors(held):
                _put(self._opened.base.model, name, self._get(name).to("meta"))
            return_freed_memory()
        for name in self._tensors(block):
            _put(self._opened.base.model, name, self._opened.read(name))
        base = self._opened.base
        geometry = base.geometry.model_copy(update={"blocks": (base.geometry.blocks[block],)})
        alone: Any = _OneLayer(self._blocks[block].layer)
        pruner = build_pruner(BaseModel(base.source, alone, geometry), _of_block(self._preparation, block))
        self._held = block, pruner
        return pruner

    def _tensors(self, block: int) -> list[str]:
        """Names of what is read with ``block``."""
        found: Block = self._blocks[block]
        inside = {id(parameter) for module in (found.attention, found.mlp) for parameter in module.parameters()}
        return [f"{self._names[block]}.{name}" for name, p in found.layer.named_parameters() if id(p) in inside]

    def _get(self, name: str) -> Tensor:
        return self._opened.base.model.get_parameter(name)


class _OneLayer(nn.Module):
    """A model that consists of one decoder layer, as far as pruners look."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def get_decoder(self) -> nn.Module:
        return self


def _of_block(preparation: Preparation, block: int) -> Preparation:
    """``preparation`` with the orders and factors of ``block`` alone, as block 0; factors are memory-mapped."""
    from safetensors import SafetensorError, safe_open

    found = dataclasses.replace(preparation)
    found.__dict__["orders"] = {
        _as_first(name): order for name, order in preparation.orders.items() if name.split(".")[1] == str(block)
    }
    factors: dict[str, Tensor] = {}
    path = preparation.folder / "factors.safetensors"
    if preparation.config.space.pruner == "width":
        try:
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.split(".")[1] == str(block)]  # noqa: SIM118
                factors = {_as_first(name): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise PreparationError(
                f"The preparation at {preparation.folder} is broken: {path.name}: {error}"
            ) from error
    found.__dict__["factors"] = factors
    return found


def _as_first(name: str) -> str:
    kind, _, *rest = name.split(".")
    return ".".join([kind, "0", *rest])


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _compact(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def return_freed_memory() -> None:
    """Gives the system what has been freed; a no-op where the C library is not glibc.

    glibc keeps freed memory in its heap, where the matrices of the next block often do not fit between what is left:
    without this the process grew by two thirds of a block with every block.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # TypeError: on Windows
        return None
