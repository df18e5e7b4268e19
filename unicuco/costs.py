"""Costs: the objectives that need no surrogate. Size always; latency where a run is given a table to learn by.

Both are sums over sites in whole numbers (parameters, nanoseconds), and both are said as the share of what the dense
model's blocks cost, so that one scale does for both: from the smallest share that the search covers to 1. Where both
count, they make up one price per level, and what shares out a budget of parameters shares out a price. (Ours; measured
in docs/decisions.md.)
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from unicuco.errors import SpaceError
from unicuco.latency import LatencyTable
from unicuco.objectives import site_shares
from unicuco.request import LATENCY, SIZE
from unicuco.space import SearchSpace


class Costs:
    """What strategies of one space cost.

    Attributes:
        names: ``size``, and ``latency`` where there is a table; in this order in every array below.
    """

    def __init__(self, space: SearchSpace, table: LatencyTable | None = None) -> None:
        """
        Raises:
            LatencyError: the table is of another base model.
        """
        self.space = space
        self.names = (SIZE,) if table is None else (SIZE, LATENCY)
        self._sites = np.arange(space.num_sites)
        self._shares = torch.as_tensor(site_shares(space))
        if table is not None:
            self._times, _ = table.nanoseconds(space)
            self._dense = int(self._times[:, 0].sum())

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, levels: np.ndarray) -> np.ndarray:
        """Shares of the dense blocks' costs that ``n x num_sites`` level indices leave (``n x num_costs``)."""
        kept = self.space.kept(levels)
        if len(self) == 1:
            return kept[:, None]
        return np.column_stack([kept, self._times[self._sites, levels].sum(axis=-1) / self._dense])

    def of_sparsities(self, x: Tensor) -> Tensor:
        """The same for sparsities (``n x num_sites``), linear between levels and differentiable in ``x``."""
        kept = (1 - x @ self._shares)[:, None]
        if len(self) == 1:
            return kept
        levels, times = self._steps
        flat = x.clamp(0, 1).T.contiguous()  # num_sites x n
        upper = torch.searchsorted(levels, flat.detach()).clamp(1, levels.shape[1] - 1)
        x0, x1 = levels.gather(1, upper - 1), levels.gather(1, upper)
        t0, t1 = times.gather(1, upper - 1), times.gather(1, upper)
        return torch.cat([kept, (t0 + (t1 - t0) * (flat - x0) / (x1 - x0)).sum(0)[:, None]], dim=1)

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor]:
        """Sparsity and share of the blocks' time at every level; past a site's last, which no ``x`` reaches, any."""
        beyond = 2.0 + np.arange(self.space.levels.shape[1])
        levels = np.where(np.isinf(self.space.levels), beyond, self.space.levels)
        return torch.as_tensor(levels), torch.as_tensor(self._times / self._dense)

    def prices(self, of_costs: np.ndarray) -> np.ndarray | None:
        """What a level costs where costs count as ``of_costs`` (``n x num_costs``, rows adding up to 1).

        Returns:
            ``n x num_sites x max_levels``, in parameters: a price of all sites dense is ``block_params``. ``None``
            where size is the only cost.
        """
        if len(self) == 1:
            return None
        params = self.space.tables["params"]
        times = self._times * (self.space.geometry.block_params / self._dense)
        return of_costs[:, :1, None] * params + of_costs[:, 1:, None] * times

    def check_reach(self, kept: float) -> None:
        """Refuses a search down to ``kept`` of the blocks' costs where no strategy gets that small, or that fast.

        Raises:
            SpaceError: it says how far they get.
        """
        self.space.check_reach(kept)
        fastest = float(self(self.space.smallest[None])[0, -1])
        if fastest > kept:
            raise SpaceError(
                f"The fastest strategy of this search space takes {fastest:.3f} of the blocks' milliseconds by the "
                f"latency table, and the search is to end at {kept:g} (learner.kept_low): "
                + (
                    "zeros in dense shapes save no time, so leave the table away."
                    if self.space.is_sparse
                    else "let it end above that, or choose a space that drops sublayers."
                )
            )
