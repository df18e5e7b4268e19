"""What a pruner is: something that says what is left of each block at given widths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from unicuco.errors import StrategyError
from unicuco.space import Shape


@dataclass(frozen=True)
class PrunedBlock:
    """The tensors of one block after pruning; views of shared storage, never to be written to.

    Attributes:
        groups, neurons: KV groups and MLP neurons left; 0 means that the sublayer is dropped.
        attention: state dict of the pruned ``self_attn`` (``q_proj.weight``, ...); empty when dropped.
        mlp: state dict of the pruned ``mlp`` (``gate_proj.weight``, ...); empty when dropped.
    """

    groups: int
    neurons: int
    attention: dict[str, Tensor]
    mlp: dict[str, Tensor]


class Pruner(Protocol):
    """One file per pruner implements this; evaluators and exports use nothing else."""

    name: str

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        """What is left of ``block`` with ``groups`` KV groups and ``neurons`` neurons."""
        ...


@runtime_checkable
class SparsityPruner(Pruner, Protocol):
    """A pruner whose strategies set weights to zero in dense shapes."""

    def sparse_block(self, block: int, attention: float, mlp: float) -> PrunedBlock:
        """``block`` with these shares of the weights of its attention's and its MLP's matrices set to zero."""
        ...

    def products(self, block: int, name: str, gradient: Tensor) -> np.ndarray:
        """⟨gradient, W_m⟩ for one matrix (``rows x columns``) at every level m (``num_levels``)."""
        ...


def pruned_blocks(pruner: Pruner, shape: Shape) -> list[PrunedBlock]:
    """Every block of the model at ``shape``, in order.

    Raises:
        StrategyError: sparsities for a pruner that knows only widths.
    """
    if shape.sparsity:
        if not isinstance(pruner, SparsityPruner):
            raise StrategyError(f"The pruner '{pruner.name}' sets no weights to zero.")
        return [pruner.sparse_block(b, *shares) for b, shares in enumerate(shape.sparsity)]
    pairs = zip(shape.groups, shape.neurons, strict=True)
    return [pruner.pruned_block(b, groups, neurons) for b, (groups, neurons) in enumerate(pairs)]
