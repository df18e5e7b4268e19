"""Low-rank updates beside frozen linear layers, and their merging (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from unicuco.errors import RecoveryError
from unicuco.models.sites import decoder


class LoRALinear(nn.Module):
    """A frozen linear layer plus ``up @ down``, which starts at zero.

    Attributes:
        down: ``rank x in_features``, float32. up: ``out_features x rank``, float32.
        mask: ``out_features x in_features``, where weights may change; ``None``: everywhere.
    """

    mask: Tensor | None

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator, keep_zeros: bool) -> None:
        super().__init__()
        rows, columns = layer.weight.shape
        rank = min(rank, rows, columns)
        device = layer.weight.device
        start = torch.randn(rank, columns, generator=generator) * columns**-0.5
        self.layer = layer
        self.down = nn.Parameter(start.to(device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=device))
        mask = layer.weight != 0 if keep_zeros else None
        self.register_buffer("mask", mask if mask is not None and not bool(mask.all()) else None, persistent=False)

    def update(self) -> Tensor:
        """What training adds to the weight (``out_features x in_features``, float32)."""
        found = self.up @ self.down
        return found if self.mask is None else found * self.mask

    def forward(self, inputs: Tensor) -> Tensor:
        if self.mask is not None:  # a product of two factors has no zeros of its own: it is made whole, and masked
            weight = self.layer.weight + self.update().to(self.layer.weight.dtype)
            return linear(inputs, weight, self.layer.bias)
        low = linear(inputs, self.down.to(inputs.dtype))
        return self.layer(inputs) + linear(low, self.up.to(inputs.dtype))

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The layer's weight with the update, in the weight's dtype."""
        return (self.layer.weight.float() + self.update()).to(self.layer.weight.dtype)


def add_lora(model: nn.Module, rank: int, seed: int, keep_zeros: bool) -> dict[str, LoRALinear]:
    """Puts an update beside every linear layer of ``model``'s blocks; those that are all zero stay as they are.

    Args:
        keep_zeros: weights that are zero stay zero: those of a sparse or padded checkpoint.

    Returns:
        the updates by the layers' names, in the model's order.

    Raises:
        RecoveryError: no linear layer is left.
    """
    generator = torch.Generator().manual_seed(seed)
    inside = decoder(model).layers
    prefix = next(name for name, module in model.named_modules() if module is inside)
    found = [(name, module) for name, module in inside.named_modules() if isinstance(module, nn.Linear)]
    added: dict[str, LoRALinear] = {}
    for name, layer in found:
        if keep_zeros and not bool(layer.weight.any()):
            continue
        update = LoRALinear(layer, rank, generator, keep_zeros)
        inside.set_submodule(name, update)
        added[f"{prefix}.{name}"] = update
    if not added:
        raise RecoveryError("The checkpoint's blocks have no linear layer left that could be trained.")
    return added


def merge_lora(model: nn.Module, added: dict[str, LoRALinear]) -> None:
    """Adds every update to its layer's weight and puts the layer back: ``model`` is an ordinary model again."""
    for name, update in added.items():
        update.layer.weight.data = update.merged()
        model.set_submodule(name, update.layer)
