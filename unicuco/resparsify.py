"""Exports of sparsity policies: the answer's sparsities, pruned again in order.

The level database prunes every block on dense activations, so that strategies can be compared without pruning anew. A
checkpoint is worth more care: each block is pruned on what the pruned blocks before it pass on, in float32, and what
comes out is measured again.
"""

from __future__ import annotations

from typing import cast

import torch

from unicuco.checkpoint import Layout
from unicuco.errors import CheckpointError
from unicuco.evaluator import Evaluator
from unicuco.models.load import DTYPES, BaseModel, load_base_model
from unicuco.pruners.sequential import Method, prune_in_place
from unicuco.space import SearchSpace, Shape


def choose_layout(space: SearchSpace, layout: Layout | None) -> Layout:
    """``layout``, or the one that suits ``space`` where none is given.

    Raises:
        CheckpointError: zeros cannot be stored in narrower shapes.
    """
    if space.is_sparse and layout not in (None, "padded"):
        raise CheckpointError(
            f"This policy's pruner ({space.config.pruner}) sets weights to zero and leaves all shapes dense, so there "
            f"is nothing for the layout '{layout}' to make smaller; use 'padded'."
        )
    return layout or ("padded" if space.is_sparse else "hetero")


def prune_in_order(evaluator: Evaluator, shape: Shape) -> BaseModel:
    """The base model of ``evaluator`` loaded anew and pruned to the sparsities of ``shape``, in the evaluator's dtype.

    Needs room for a second base model in float32; the pinned one stays as it is.
    """
    config, preparation = evaluator.config, evaluator.preparation
    base = load_base_model(evaluator.base.source, "float32", config.device, config.trust_remote_code)
    method = cast(Method, preparation.config.space.pruner)
    prune_in_place(base.model, preparation.calibration_windows, method, shape.sparsity)
    torch.nn.Module.to(base.model, DTYPES[config.dtype])
    return base
