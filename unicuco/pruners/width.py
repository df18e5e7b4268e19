"""Width pruning: importance-ordered slices with least-squares compensated output projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unicuco.errors import PreparationError
from unicuco.models.geometry import BlockGeometry
from unicuco.models.load import BaseModel
from unicuco.models.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, Block, find_blocks
from unicuco.preparation import Preparation
from unicuco.pruners.base import PrunedBlock
from unicuco.pruners.cache import CACHE_BYTES, TensorCache
from unicuco.pruners.slices import compensated, unit_columns


class WidthPruner:
    """Prefixes of permuted matrices, and one solved output projection per level, kept in a cache with a byte budget.

    The permutation is applied to the base model's own weights on construction, once; it does not change its function.
    """

    name = "width"

    def __init__(self, base: BaseModel, preparation: Preparation, cache_bytes: int = CACHE_BYTES) -> None:
        """
        Raises:
            PreparationError: the model was ordered by another preparation before.
        """
        self._geometry = base.geometry
        self._factors = preparation.factors
        self._blocks = find_blocks(base.model)
        self._cache = TensorCache(cache_bytes)
        if base.ordered_by not in (None, preparation.digest):
            raise PreparationError("This model's units are in another preparation's order; load the base model anew.")
        for b, block in enumerate(self._blocks if base.ordered_by is None else ()):
            _permute(
                block, preparation.orders[f"attention.{b}"], preparation.orders[f"mlp.{b}"], self._geometry.blocks[b]
            )
        base.ordered_by = preparation.digest
        self._attention = [_tensors(block.attention) for block in self._blocks]
        self._mlp = [_tensors(block.mlp) for block in self._blocks]

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        """Views of the first ``groups`` KV groups and ``neurons`` neurons of ``block``, output projections solved."""
        shape = self._geometry.blocks[block]
        rows = self._blocks[block].rows(shape, groups, neurons)
        attention, mlp = {}, {}
        if groups:
            query = rows["q_proj"]
            attention = {name: _rows(name, tensor, rows) for name, tensor in self._attention[block].items()}
            attention["o_proj.weight"] = self._solved("attention", block, query, attention["o_proj.weight"])
        if neurons:
            mlp = {name: _rows(name, tensor, rows) for name, tensor in self._mlp[block].items()}
            mlp["down_proj.weight"] = self._solved("mlp", block, neurons, mlp["down_proj.weight"])
        return PrunedBlock(groups, neurons, attention, mlp)

    def _solved(self, kind: str, block: int, kept: int, weight: Tensor) -> Tensor:
        if kept == weight.shape[1]:
            return weight
        return self._cache.get((kind, block, kept), lambda: self._solve(kind, block, kept, weight))

    @torch.no_grad()
    def _solve(self, kind: str, block: int, kept: int, weight: Tensor) -> Tensor:
        factor = self._factors[f"{kind}.{block}"].to(weight.device)
        return compensated(factor, weight.float(), kept).to(weight.dtype).contiguous()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}


def _rows(name: str, tensor: Tensor, rows: dict[str, int]) -> Tensor:
    count = rows.get(name.split(".")[0])
    return tensor if count is None else tensor[:count]


def _permute(block: Block, groups: Tensor, neurons: Tensor, shape: BlockGeometry) -> None:
    heads = unit_columns(groups, shape.heads_per_group * shape.head_dim)
    keys = unit_columns(groups, shape.head_dim)
    rows = dict(zip(ATTENTION_PROJECTIONS[:3], (heads, keys, keys), strict=True))
    rows |= dict.fromkeys(MLP_PROJECTIONS[:2], neurons)
    rows |= {"q_norm": heads, "k_norm": keys} if block.norms_span_heads else {}
    with torch.no_grad():
        for module, output, columns in ((block.attention, "o_proj", heads), (block.mlp, "down_proj", neurons)):
            for name, child in module.named_children():
                if name in rows:
                    for parameter in child.parameters():
                        parameter.data = parameter.data.index_select(0, rows[name].to(parameter.device))
            weight = getattr(module, output).weight
            # On bfloat16 indexing takes three times as long as gather here, and seven times as index_select above.
            weight.data = weight.data.gather(1, columns.to(weight.device).expand(weight.shape[0], -1))
