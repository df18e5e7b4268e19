"""Turning a pinned base model into a pruned one and back by swapping tensors and modules, copying nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unicuco.models.sites import find_blocks
from unicuco.pruners.base import PrunedBlock


class DroppedAttention(nn.Module):
    """Stands where an attention was: adds nothing to the residual stream, costs nothing."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(1, 1, hidden_states.shape[-1]), None


class DroppedMLP(nn.Module):
    """Stands where an MLP was."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(1, 1, hidden_states.shape[-1])


class SwitchableModel:
    """A base model whose blocks can be set to any width in about a millisecond.

    The model's own forward runs in every state, so nothing here depends on how a family passes masks or positions.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._blocks = find_blocks(model)
        self._attention = [_leaves(block.attention) for block in self._blocks]
        self._mlp = [_leaves(block.mlp) for block in self._blocks]
        self._norms = [
            {name: getattr(block.layer, name) for name in block.attention_norms + block.mlp_norms}
            for block in self._blocks
        ]
        self._dense = [{n: m._parameters[leaf] for n, (m, leaf) in _all(a, f)} for a, f in self._pairs()]

    def _pairs(self) -> list[tuple[dict, dict]]:
        return list(zip(self._attention, self._mlp, strict=True))

    def apply(self, blocks: list[PrunedBlock]) -> None:
        """Sets every block; ``blocks`` has one entry per block of the base model."""
        for b, (block, pruned) in enumerate(zip(self._blocks, blocks, strict=True)):
            layer = block.layer
            setattr(layer, block.attention_name, block.attention if pruned.attention else DroppedAttention())
            layer.mlp = block.mlp if pruned.mlp else DroppedMLP()
            for names, present in ((block.attention_norms, pruned.attention), (block.mlp_norms, pruned.mlp)):
                for name in names:
                    setattr(layer, name, self._norms[b][name] if present else nn.Identity())
            _set(self._attention[b], pruned.attention)
            _set(self._mlp[b], pruned.mlp)

    def restore(self) -> None:
        """Back to the dense base model, module for module."""
        for b, block in enumerate(self._blocks):
            setattr(block.layer, block.attention_name, block.attention)
            block.layer.mlp = block.mlp
            for name, norm in self._norms[b].items():
                setattr(block.layer, name, norm)
            for name, (module, leaf) in _all(self._attention[b], self._mlp[b]):
                module._parameters[leaf] = self._dense[b][name]


def _leaves(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    owners = dict(module.named_modules())
    split = [(name, *name.rpartition(".")[::2]) for name, _ in module.named_parameters()]
    return {name: (owners[owner], leaf) for name, owner, leaf in split}


def _all(attention: dict, mlp: dict) -> list[tuple[str, tuple[nn.Module, str]]]:
    return [(f"attention.{n}", v) for n, v in attention.items()] + [(f"mlp.{n}", v) for n, v in mlp.items()]


def _set(leaves: dict[str, tuple[nn.Module, str]], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        module, leaf = leaves[name]
        current = module._parameters[leaf]
        if current is None or current.data_ptr() != tensor.data_ptr() or current.shape != tensor.shape:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
