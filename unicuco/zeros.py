"""How many weights a sparsity pruner sets to zero, exactly and without the model: what pruners do, in whole numbers."""

from __future__ import annotations

from typing import Literal

from unicuco.models.geometry import Geometry

Kind = Literal["attention", "mlp"]


def matrix_shapes(geometry: Geometry, block: int, kind: Kind) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of every matrix of one sublayer that is pruned: q, k, v and o, or gate (if any), up and down."""
    shape, hidden = geometry.blocks[block], geometry.hidden_size
    if kind == "mlp":
        inputs = shape.macs_per_neuron // hidden - 1  # up, and mostly a gate
        return ((shape.neurons, hidden),) * inputs + ((hidden, shape.neurons),)
    keys = shape.groups * shape.head_dim
    queries = keys * shape.heads_per_group
    return (queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)


def zeros_at(geometry: Geometry, block: int, kind: Kind, sparsity: float, pruner: str) -> int:
    """Weights of one sublayer that ``pruner`` sets to zero at ``sparsity``.

    Wanda rounds for every row, the others for the whole matrix. Weights that were zero in the base model are among
    them, since they go first.
    """
    shapes = matrix_shapes(geometry, block, kind)
    if pruner == "wanda":
        return sum(rows * round(sparsity * columns) for rows, columns in shapes)
    return sum(round(sparsity * rows * columns) for rows, columns in shapes)
