"""Depth pruning: attention, MLPs or whole blocks dropped, nothing else changed."""

from __future__ import annotations

from unicuco.errors import StrategyError
from unicuco.models.load import BaseModel
from unicuco.models.sites import find_blocks
from unicuco.pruners.base import PrunedBlock


class DepthPruner:
    """Keeps a sublayer whole or drops it."""

    def __init__(self, base: BaseModel, name: str = "depth") -> None:
        """
        Args:
            name: of what made the base model's tensors what they are, where they are dense no more.
        """
        self.name = name
        self._geometry = base.geometry
        self._blocks = find_blocks(base.model)

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        """The untouched tensors of the sublayers that stay.

        Raises:
            StrategyError: a width between nothing and all.
        """
        shape = self._geometry.blocks[block]
        if groups not in (0, shape.groups) or neurons not in (0, shape.neurons):
            raise StrategyError("The depth pruner keeps a sublayer whole or drops it; use the width pruner for less.")
        module = self._blocks[block]
        return PrunedBlock(
            groups,
            neurons,
            {n: t.detach() for n, t in module.attention.state_dict().items()} if groups else {},
            {n: t.detach() for n, t in module.mlp.state_dict().items()} if neurons else {},
        )
