"""Widths of a base model in the order in which its units lie, with nothing re-solved: shapes to be timed."""

from __future__ import annotations

from torch import Tensor, nn

from unicuco.models.load import BaseModel
from unicuco.models.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, find_blocks
from unicuco.pruners.base import PrunedBlock


class Slices:
    """First KV groups and first neurons of a base model's own matrices: right in shape, and needs no preparation."""

    name = "slices"

    def __init__(self, base: BaseModel) -> None:
        self._geometry = base.geometry
        blocks = find_blocks(base.model)
        self._attention, self._mlp = [_tensors(b.attention) for b in blocks], [_tensors(b.mlp) for b in blocks]

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        shape = self._geometry.blocks[block]
        query, key = groups * shape.heads_per_group * shape.head_dim, groups * shape.head_dim
        attention_rows = dict(zip(ATTENTION_PROJECTIONS, (query, key, key), strict=False))
        attention = _slices(self._attention[block], attention_rows, "o_proj", query) if groups else {}
        mlp_rows = dict.fromkeys(MLP_PROJECTIONS[:2], neurons)
        mlp = _slices(self._mlp[block], mlp_rows, "down_proj", neurons) if neurons else {}
        return PrunedBlock(groups, neurons, attention, mlp)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}


def _slices(tensors: dict[str, Tensor], rows: dict[str, int], output: str, columns: int) -> dict[str, Tensor]:
    found = {name: t[: rows[name.split(".")[0]]] if name.split(".")[0] in rows else t for name, t in tensors.items()}
    found[f"{output}.weight"] = tensors[f"{output}.weight"][:, :columns].contiguous()
    return found
