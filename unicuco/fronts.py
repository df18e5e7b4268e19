"""StratNet's fronts: at which preference its answers come down to a size, for every way to share out both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from unicuco.costs import Costs
from unicuco.objectives import site_shares
from unicuco.wishes import Wish

GRID, COARSE = 256, 64
"""Preferences at which a front is laid out: once, or once for each shares of domains that somebody asks for."""
REMEMBERED = 64
"""Fronts that are remembered."""


class Fronts:
    """Of one StratNet. Thread-safe: all that changes is what is remembered.

    Attributes:
        ask: preferences (``n x num_objectives``) to sparsities (``n x num_sites``).
    """

    def __init__(self, ask: Callable[[np.ndarray], np.ndarray], costs: Costs) -> None:
        self.ask = ask
        self._costs, self._space, self._shares = costs, costs.space, site_shares(costs.space)
        self._front = lru_cache(REMEMBERED)(self._lay)

    def joined(self, weight: np.ndarray, wishes: Sequence[Wish]) -> np.ndarray:
        """Preferences (``n x num_objectives``): the weight of all costs (``n``), and wishes (``n`` or 1) that say how
        both sides are shared out."""
        of_costs, shares = np.array([w.of_costs for w in wishes]), np.array([w.shares for w in wishes])
        if len(self._costs) == 1:
            of_costs = np.ones((len(wishes), 1))
        return np.hstack([weight[:, None] * of_costs, (1 - weight)[:, None] * shares])

    def cost_weight(
        self, budgets: np.ndarray, shares: tuple[float, ...], of_costs: tuple[float, float] = (1.0, 0.0)
    ) -> np.ndarray:
        """The weights of costs (``n``) at which StratNet's answers for these shares have as many parameters."""
        weight, kept = self._front(shares, of_costs)
        wanted = (budgets - self._space.fixed["params"]) / self._space.geometry.block_params
        # The grid's kept share falls with the weight of costs; np.interp wants ascending abscissae.
        return np.interp(wanted, kept[::-1], weight[::-1])

    def _lay(self, shares: tuple[float, ...], of_costs: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """The weight of costs (ascending), and the kept share there, made monotone."""
        weight = np.linspace(0.002, 0.998, GRID if len(shares) == 1 else COARSE)
        kept = 1 - self.ask(self.joined(weight, [unbounded(shares, of_costs)])) @ self._shares
        return weight, np.minimum.accumulate(kept)


def unbounded(shares: tuple[float, ...], of_costs: tuple[float, float] = (1.0, 0.0)) -> Wish:
    """A wish without bounds."""
    return Wish(None, shares, False, np.inf, (np.inf,) * len(shares), of_costs)
