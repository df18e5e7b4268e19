"""The level database: every matrix of a base model at every sparsity, pruned on what the dense model feeds it.

Built once, in a preparation; a strategy of different sparsities is then put together from it, and measuring one costs
a dense forward pass. Each block is pruned on dense activations, not on those of pruned blocks before it: that is what
makes levels independent of each other. An export prunes again in order (unicuco/resparsify.py).

- Wanda, ``levels.BBB.safetensors``: one byte per weight, the first level at which it is zero (its masks are nested).
- SparseGPT and SparseLLM, ``levels.BBB.LL.safetensors``: the matrices of a block at a level, in the base model's dtype.
  They are memory-mapped, so that all evaluators of a machine share one copy.

While building, memory holds the hidden states of the calibration windows, one block's Gram matrices and their factors
(each factored once for all levels), and one block at one level.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unicuco.calibration import Windows
from unicuco.errors import DiskFullError, PreparationError
from unicuco.levels import SpaceConfig
from unicuco.models.geometry import Geometry
from unicuco.models.load import BaseModel
from unicuco.models.sites import Block, find_blocks
from unicuco.pruners.sequential import READERS, BlockInputs, Method, check_prunable, enter, gather, matrices, run
from unicuco.pruners.sparsegpt import inverse_factor, sparsegpt
from unicuco.pruners.sparsellm import ffn_matrices, open_ffn, sparsellm
from unicuco.statistics import first_of_each, output_gradients
from unicuco.zeros import matrix_shapes

Report = Callable[[str, int, int], None]


def database_bytes(geometry: Geometry, config: SpaceConfig, itemsize: int) -> int:
    """What the tensors of a database take on disk, with a base model of so many bytes a parameter."""
    weights = 0
    for b in range(len(geometry.blocks)):
        shapes = matrix_shapes(geometry, b, "attention") + matrix_shapes(geometry, b, "mlp")
        weights += sum(rows * columns for rows, columns in shapes)
    return weights if config.pruner == "wanda" else weights * itemsize * (len(config.sparsities) - 1)


@torch.no_grad()
def build_levels(
    folder: Path, base: BaseModel, config: SpaceConfig, windows: Windows, gradient_windows: int, report: Report
) -> dict[str, list[float]]:
    """Writes the database of ``base`` into ``folder``.

    Args:
        windows: calibration; damages are predicted from the first ``gradient_windows`` of each domain.

    Returns:
        under ``attention.B`` and ``mlp.B``, the damage predicted for every level, in nats per token: ½ E[(gᵀΔ)²], with
        Δ the change of the sublayer's output at a token and g that token's own gradient (unicuco/statistics.py). A mean
        of g gᵀ over tokens would not do: the few tokens with huge activations change most and matter least.

    Raises:
        DiskFullError: there is no room for it. ModelError: the pruner cannot prune this model. Both before any work.
    """
    model, method = base.model, cast(Method, config.pruner)
    blocks = find_blocks(model)
    check_prunable(blocks, method)
    needed, free = database_bytes(base.geometry, config, model.dtype.itemsize), shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"The level database takes {needed / 1e9:.1f} GB, and {folder.parent} has {free / 1e9:.1f} GB left; "
            "make room, or give fewer 'sparsities'."
        )
    stage = f"pruning by {method} to {len(config.sparsities) - 1} levels ({needed / 1e6:,.0f} MB on disk)"
    report(stage, 0, len(blocks))
    few = first_of_each(windows, gradient_windows)
    gradients = output_gradients(model, windows, few, report)
    hidden, calls = enter(model, blocks, windows)
    curves: dict[str, list[float]] = {}
    for b, (block, call) in enumerate(zip(blocks, calls, strict=True)):
        seen = _watch_sublayers(block, hidden[few], call)
        gathered = gather(block, hidden, call, method, keep=True)
        found: dict[str, list[float]] = {"attention": [0.0], "mlp": [0.0]}
        for tensors in _write_block(folder, b, block, method, gathered, config.sparsities):
            with _at(block, tensors):
                for kind, curve in found.items():
                    damage = _damage(getattr(block, kind), seen[kind], gradients[b][kind])
                    curve.append(max(damage, curve[-1]))
        curves |= {f"{kind}.{b}": curve for kind, curve in found.items()}
        report(stage, b + 1, len(blocks))
    return curves


def _write_block(
    folder: Path, b: int, block: Block, method: Method, gathered: BlockInputs, sparsities: tuple[float, ...]
) -> Iterator[dict[str, Tensor]]:
    """Writes one block's levels, and yields its matrices at each, level 0 left out."""
    own = {name: matrix.weight.data for name, matrix in matrices(block).items()}
    if method == "wanda":
        dies = {
            name: wanda_levels(own[name], energy, sparsities)
            for names, energy in zip(READERS, gathered.squares, strict=True)
            for name in names
            if name in own
        }
        save_file({name: level.cpu() for name, level in dies.items()}, folder / _file(b))
        for level in range(1, len(sparsities)):
            yield {name: weight.masked_fill(dies[name] <= level, 0) for name, weight in own.items()}
        return
    readers = READERS[:2] if method == "sparsellm" else READERS
    factors = [inverse_factor(gram) for gram in gathered.squares[: len(readers)]]
    ffn = open_ffn(block.mlp, *gathered.ffn) if gathered.ffn is not None else None
    for level, sparsity in enumerate(sparsities[1:], 1):
        found: dict[str, Tensor] = {}
        for names, factor in zip(readers, factors, strict=True):
            present = [name for name in names if name in own]
            found |= dict(zip(present, sparsegpt([own[name] for name in present], *factor, sparsity), strict=True))
        if ffn is not None:
            assert gathered.ffn is not None
            solved, _ = sparsellm(copy.copy(ffn), gathered.ffn[1], sparsity)  # its steps replace, they change nothing
            named = zip(ffn_matrices(block.mlp), solved, strict=True)
            found |= {name: new.to(own[name].dtype) for name, new in named}
        save_file({name: tensor.cpu().contiguous() for name, tensor in found.items()}, folder / _file(b, level))
        yield found


def wanda_levels(weight: Tensor, energy: Tensor, sparsities: tuple[float, ...]) -> Tensor:
    """For each weight the first level at which Wanda removes it, ``len(sparsities)`` where none does (uint8).

    Args:
        weight: ``rows x columns``; energy: as for ``unicuco.pruners.scores.wanda``, whose masks these are.
    """
    scores = weight.abs().to(energy.dtype) * energy.sqrt()
    columns = weight.shape[1]
    place = torch.empty(weight.shape, dtype=torch.long, device=weight.device)
    order = torch.arange(columns, device=weight.device).expand_as(place)
    place.scatter_(1, scores.argsort(dim=1, stable=True), order)  # equal scores: the earlier column goes first
    counts = torch.tensor([round(sparsity * columns) for sparsity in sparsities], device=weight.device)
    return torch.searchsorted(counts, place, right=True).to(torch.uint8)


def _watch_sublayers(block: Block, hidden: Tensor, call: dict[str, Any]) -> dict[str, list[tuple[Any, Any, Tensor]]]:
    """How attention and MLP are called on each window, and what they give back."""
    seen: dict[str, list[tuple[Any, Any, Tensor]]] = {"attention": [], "mlp": []}
    handles = []
    for kind, found in seen.items():

        def note(module: Any, args: Any, kwargs: Any, output: Any, found: list = found) -> None:
            found.append((args, kwargs, _tensor(output)))

        handles.append(getattr(block, kind).register_forward_hook(note, with_kwargs=True))
    try:
        run(block, hidden, call)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _damage(module: Any, seen: list[tuple[Any, Any, Tensor]], gradients: Tensor) -> float:
    outputs = [_tensor(module(*args, **kwargs)) - dense for args, kwargs, dense in seen]
    change = torch.cat([output.flatten(0, -2) for output in outputs]).float()
    return float((change * gradients.float()).sum(dim=1).square().mean() / 2)


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _at(block: Block, tensors: dict[str, Tensor]) -> Iterator[None]:
    """The block with these matrices."""
    own = matrices(block)
    dense = {name: own[name].weight.data for name in tensors}
    try:
        for name, tensor in tensors.items():
            own[name].weight.data = tensor
        yield
    finally:
        for name, tensor in dense.items():
            own[name].weight.data = tensor


class LevelDatabase:
    """A database on disk; files are mapped when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, dict[str, Tensor]] = {}

    def deaths(self, block: int) -> dict[str, Tensor]:
        """Wanda's: for each matrix of ``block``, the level at which each weight dies (uint8)."""
        return self._open(_file(block))

    def weights(self, block: int, level: int) -> dict[str, Tensor]:
        """The matrices of ``block`` at ``level`` (not 0), never to be written to."""
        return self._open(_file(block, level))

    def _open(self, name: str) -> dict[str, Tensor]:
        if name not in self._files:
            try:
                self._files[name] = load_file(self._folder / name)
            except (OSError, SafetensorError) as error:
                raise PreparationError(f"The preparation at {self._folder} is broken: {name}: {error}") from error
        return self._files[name]


def _file(block: int, level: int | None = None) -> str:
    return f"levels.{block:03d}.safetensors" if level is None else f"levels.{block:03d}.{level:02d}.safetensors"
