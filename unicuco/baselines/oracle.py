"""What every search asks: the KL of a strategy, from a budget that is counted alike for everybody.

Budgets are in evaluations of the standard tokens (docs/protocol.md). Asking again costs again: what a cache saves is
time, never budget.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from unicuco.space import SearchSpace


class BudgetSpentError(Exception):
    """The next evaluation would go over the budget; what was found so far stands."""


class Oracle(Protocol):
    """Measures strategies of one search space and counts what that costs."""

    space: SearchSpace
    num_windows: int
    """Search windows of one standard evaluation."""

    @property
    def left(self) -> float:
        """What is left of the budget, in standard evaluations."""
        ...

    def kl(self, levels: np.ndarray, windows: int | None = None) -> float:
        """KL(dense || pruned) of one strategy, nats per token.

        Args:
            levels: ``num_sites`` level indices.
            windows: measure on the first so many search windows only, for that share of the cost; None: on all.

        Raises:
            BudgetSpentError: nothing was measured or charged.
        """
        ...
