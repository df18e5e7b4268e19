"""Sparsity by the level database: each sublayer's matrices at a level of its own, in dense shapes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unicuco.errors import StrategyError
from unicuco.models.load import BaseModel
from unicuco.models.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, find_blocks
from unicuco.preparation import Preparation
from unicuco.pruners.base import PrunedBlock
from unicuco.pruners.cache import CACHE_BYTES, TensorCache
from unicuco.pruners.depth import DepthPruner
from unicuco.pruners.sequential import matrices

KINDS = {"attention": ATTENTION_PROJECTIONS, "mlp": MLP_PROJECTIONS}


class LevelPruner(DepthPruner):
    """Views of the database where it holds weights; for Wanda, weights masked when first needed and then cached."""

    def __init__(self, base: BaseModel, preparation: Preparation, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(base, preparation.config.space.pruner)
        self._sparsities = preparation.config.space.sparsities
        self._levels = preparation.levels
        self._dense = [{n: m.weight.data for n, m in matrices(block).items()} for block in find_blocks(base.model)]
        self._cache = TensorCache(cache_bytes)

    def sparse_block(self, block: int, attention: float, mlp: float) -> PrunedBlock:
        """``block`` with its attention and its MLP at these sparsities.

        Raises:
            StrategyError: the database has no such level.
        """
        shape = self._geometry.blocks[block]
        whole = self.pruned_block(block, shape.groups, shape.neurons)
        found = []
        for kind, tensors, sparsity in (("attention", whole.attention, attention), ("mlp", whole.mlp, mlp)):
            level = self._level(sparsity)
            own = [name for name in KINDS[kind] if name in self._dense[block]]
            found.append({**tensors, **{f"{name}.weight": self.weight(block, name, level) for name in own}})
        return PrunedBlock(shape.groups, shape.neurons, *found)

    def weight(self, block: int, name: str, level: int) -> Tensor:
        """One matrix at one level, by its index."""
        dense = self._dense[block][name]
        if level == 0:
            return dense
        key = (block, name, level)
        if self.name == "wanda":
            return self._cache.get(key, lambda: dense.masked_fill(self.deaths(block, name) <= level, 0))
        stored = self._levels.weights(block, level)[name]
        if stored.dtype == dense.dtype and stored.device == dense.device:
            return stored
        return self._cache.get(key, lambda: stored.to(dense.device, dense.dtype))

    def products(self, block: int, name: str, gradient: Tensor) -> np.ndarray:
        """⟨gradient, W_m⟩ for one matrix at every level m (``num_levels``).

        Args:
            gradient: ``rows x columns``; one column more, a bias's, does not count: biases stay.
        """
        count, gradient = len(self._sparsities), gradient[:, : self._dense[block][name].shape[1]]
        if self.name != "wanda":
            found = [float((gradient * self.weight(block, name, level)).sum()) for level in range(count)]
            return np.array(found)
        parts = (gradient * self._dense[block][name]).flatten().double()
        sums = torch.bincount(self.deaths(block, name).flatten(), weights=parts, minlength=count + 1)
        return sums.cpu().numpy()[::-1].cumsum()[::-1][1:].copy()  # of what dies at later levels

    def deaths(self, block: int, name: str) -> Tensor:
        """Wanda's: the level at which each weight of a matrix dies, beside it."""
        return self._levels.deaths(block)[name].to(self._dense[block][name].device)

    def _level(self, sparsity: float) -> int:
        if sparsity not in self._sparsities:
            known = ", ".join(f"{value:g}" for value in self._sparsities)
            raise StrategyError(f"The level database has no sparsity of {sparsity:g}; it has {known}.")
        return self._sparsities.index(sparsity)
