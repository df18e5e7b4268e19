"""A base model with updates that are sliced as its weights are: any width at any time, and merged in the end.

An input projection (q, k, v, gate, up) at a width has the first rows of its weight, and the first rows of its update's
``up`` (rank columns are never cut). An output projection W at a width is re-solved as W C, with a C that depends on the
width alone (unicuco/pruners/slices.py), so its update ``up @ down`` becomes ``up @ (down C)``: exactly what slicing the
merged matrix would give, at the price of a product with ``rank`` rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from unicuco.models.head import Head
from unicuco.models.load import BaseModel
from unicuco.models.sites import MLP_PROJECTIONS, find_blocks
from unicuco.models.swap import SwitchableModel
from unicuco.preparation import Preparation
from unicuco.pruners.base import pruned_blocks
from unicuco.pruners.slices import compensated
from unicuco.pruners.width import WidthPruner
from unicuco.space import Shape


class ElasticLinear(nn.Module):
    """A frozen linear layer at its present width, and the part of an update that belongs to that width.

    Attributes:
        layer: its weight is swapped from outside (unicuco/models/swap.py).
        down: ``rank x in_features``, float32. up: ``out_features x rank``, float32; zero at first.
        factor: lower Cholesky factor of the inputs' Gram matrix, where columns are removed; else ``None``.
        on: whether the update counts.
    """

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator, factor: Tensor | None) -> None:
        super().__init__()
        rows, columns = layer.weight.shape
        rank, device = min(rank, rows, columns), layer.weight.device
        start = torch.randn(rank, columns, generator=generator) * columns**-0.5
        self.layer, self.on = layer, True
        self.down = nn.Parameter(start.to(device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=device))
        self.factor = None if factor is None else factor.to(device)

    @property
    def weight(self) -> Tensor:
        """Of the frozen layer at its present width; families read their numbers of heads from it."""
        return self.layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs)
        if not self.on:
            return found
        rows, columns = self.layer.weight.shape
        down: Tensor = self.down
        if columns != down.shape[1]:
            assert self.factor is not None
            down = compensated(self.factor, down, columns)
        return found + linear(linear(inputs, down.to(inputs.dtype)), self.up[:rows].to(inputs.dtype))

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The whole layer's weight with the update, in the weight's dtype."""
        return (self.layer.weight.float() + self.up @ self.down).to(self.layer.weight.dtype)


class Supernetwork:
    """``base`` with an update beside every linear layer of its blocks, at any shape of the preparation's space.

    Puts the base model's units into the preparation's order. While it is in use, the model's blocks have layers that
    nothing else knows; ``merge`` makes an ordinary model of it again.

    Attributes:
        updates: by the layers' names, in the model's order.
        head: of the model; no training touches it.
    """

    def __init__(self, base: BaseModel, preparation: Preparation, rank: int, seed: int) -> None:
        self.base, self.head = base, Head(base.model)
        self._pruner, self._switch = WidthPruner(base, preparation), SwitchableModel(base.model)
        generator = torch.Generator().manual_seed(seed)
        self.updates: dict[str, ElasticLinear] = {}
        names = {module: name for name, module in base.model.named_modules()}
        for b, block in enumerate(find_blocks(base.model)):
            for kind, sublayer in (("attention", block.attention), ("mlp", block.mlp)):
                for name, layer in list(sublayer.named_children()):
                    if isinstance(layer, nn.Linear):
                        output = name in ("o_proj", MLP_PROJECTIONS[-1])
                        factor = preparation.factors[f"{kind}.{b}"] if output else None
                        update = ElasticLinear(layer, rank, generator, factor)
                        setattr(sublayer, name, update)
                        self.updates[names[layer]] = update

    def set(self, shape: Shape | None, updated: bool = True) -> None:
        """Makes the model that of ``shape`` (``None``: the whole one), with the updates or without."""
        if shape is None:
            self._switch.restore()
        else:
            self._switch.apply(pruned_blocks(self._pruner, shape))
        for update in self.updates.values():
            update.on = updated

    @contextmanager
    def as_shape(self, shape: Shape | None, updated: bool = True) -> Iterator[None]:
        """``set`` for a while; whole and updated again afterwards."""
        self.set(shape, updated)
        try:
            yield
        finally:
            self.set(None)

    @torch.inference_mode()
    def hidden(self, tokens: Tensor) -> Tensor:
        """Last hidden states (``tokens x hidden``) of the base model as it was; leaves the whole network set."""
        with self.as_shape(None, updated=False):
            found: Tensor = self.base.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        return found.flatten(0, 1)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds every update to its layer's weight and puts the layers back; of no use afterwards."""
        self.set(None)
        for name, update in self.updates.items():
            update.layer.weight = nn.Parameter(update.merged(), requires_grad=False)
            self.base.model.set_submodule(name, update.layer)
        for parameter in self.base.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
