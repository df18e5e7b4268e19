"""Removing MLP neurons without data: as many from every block, chosen by the weights alone or by chance.

Attention stays as it is, and the matrices that are left are smaller, with no zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unicuco.errors import ModelError, StrategyError
from unicuco.models.load import BaseModel
from unicuco.models.sites import Block, find_blocks, mlp_inputs
from unicuco.pruners.base import PrunedBlock
from unicuco.space import Shape


def neurons_left(neurons: int, sparsity: float) -> int:
    """⌊(1 − sparsity) · neurons⌋.

    Raises:
        StrategyError: none would be left, or the sparsity is no share.
    """
    if not 0 <= sparsity < 1:
        raise StrategyError(f"A sparsity is at least 0 and less than 1, not {sparsity:g}.")
    left = math.floor((1 - sparsity) * neurons + 1e-9)  # 1 − 0.9 is a little less than a tenth
    if left < 1:
        raise StrategyError(f"Without {sparsity:g} of {neurons} neurons none is left.")
    return left


class NeuronPruner:
    """Blocks whose MLPs were made beforehand, with whole attention."""

    def __init__(self, base: BaseModel, name: str, mlps: Sequence[dict[str, Tensor]]) -> None:
        """
        Args:
            mlps: state dict of every block's pruned MLP.
        """
        self.name = name
        self._blocks, self._mlps = find_blocks(base.model), mlps
        groups = tuple(block.groups for block in base.geometry.blocks)
        self.shape = Shape(groups, tuple(mlp["down_proj.weight"].shape[1] for mlp in mlps))

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        """
        Raises:
            StrategyError: other widths than those that it was made for.
        """
        if (groups, neurons) != (self.shape.groups[block], self.shape.neurons[block]):
            raise StrategyError(f"Block {block} was pruned to {self.shape.neurons[block]} neurons, not to {neurons}.")
        attention = {name: t.detach() for name, t in self._blocks[block].attention.state_dict().items()}
        return PrunedBlock(groups, neurons, attention, self._mlps[block])


def keep_neurons(block: Block, kept: Tensor) -> dict[str, Tensor]:
    """The state dict of the block's MLP with the neurons ``kept`` (indices) alone."""
    state = {name: tensor.detach() for name, tensor in block.mlp.state_dict().items()}
    for name in ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias"):
        if name in state:
            state[name] = state[name][kept]
    state["down_proj.weight"] = state["down_proj.weight"][:, kept]
    return state


def highest(scores: Tensor, count: int) -> Tensor:
    """Ascending indices of the ``count`` highest scores; of equal ones the earlier stay."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def random_neurons(gates: Sequence[Tensor], sparsity: float, seed: int) -> list[Tensor]:
    """Neurons that stay, by chance."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(len(gate), generator=generator)[: neurons_left(len(gate), sparsity)].sort().values
        for gate in gates
    ]


def largest_rows(gates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Neurons that stay: those with the longest rows of the gate matrix."""
    return [highest(gate.float().norm(dim=1), neurons_left(len(gate), sparsity)) for gate in gates]


def aligned_neurons(gates: Sequence[Tensor], ups: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Neurons that stay: those whose gate and up rows g and u have the largest |g · u|.

    Ours. For inputs x of independent entries with equal variance, the mean of (g · x)(u · x) is in proportion to g · u:
    without an aligned neuron, what the MLP adds on average is another.
    """
    pairs = zip(gates, ups, strict=True)
    return [highest((gate * up).sum(1).abs(), neurons_left(len(gate), sparsity)) for gate, up in pairs]


def gate_matrices(model: object) -> list[Tensor]:
    """Every block's gate matrix (``neurons x hidden``), float32, on the CPU, where draws are the same everywhere.

    In an MLP without a gate, the matrix that its neurons read through.
    """
    return [mlp_inputs(block.mlp)[0].weight.detach().float().cpu() for block in find_blocks(model)]


def up_matrices(model: object) -> list[Tensor]:
    """Every block's up matrix, likewise.

    Raises:
        ModelError: MLPs without a gate have nothing to compare it with.
    """
    blocks = find_blocks(model)
    if not all(hasattr(block.mlp, "gate_proj") for block in blocks):
        raise ModelError("'alignment' compares gate and up matrices, and this model's MLPs have no gate.")
    return [block.mlp.up_proj.weight.detach().float().cpu() for block in blocks]
