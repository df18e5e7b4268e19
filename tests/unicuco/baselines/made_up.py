"""An oracle that is only numbers: additive damages, interactions, windows that differ, and exact book-keeping."""

from __future__ import annotations

import numpy as np

from tests.unicuco.synthetic import KnownDamage
from unicuco.baselines.oracle import BudgetSpentError
from unicuco.space import SearchSpace, budgets_of


class MadeUpOracle:
    """KL per window = Σᵢ wᵢ Dᵢ(levelᵢ) + Σᵢ cᵢ √(wᵢ Dᵢ wᵢ₊₁ Dᵢ₊₁), w different on each window; KL = their mean.

    Attributes:
        calls: (level indices, windows) of everything that was measured.
        spent: standard evaluations charged.
    """

    def __init__(
        self, space: SearchSpace, budget: float, seed: int = 0, num_windows: int = 8, interaction: float = 0.5
    ) -> None:
        self.space = space
        self.num_windows = num_windows
        self.budget = budget
        self.spent = 0.0
        self.calls: list[tuple[np.ndarray, int]] = []
        rng = np.random.default_rng(seed)
        truth = KnownDamage(space, seed).truth
        self.tables = truth * np.exp(rng.normal(0, 0.3, (num_windows, space.num_sites, 1)))
        self.together = interaction * rng.exponential(1, space.num_sites - 1)

    @property
    def left(self) -> float:
        return self.budget - self.spent

    def kl(self, levels: np.ndarray, windows: int | None = None) -> float:
        assert levels.shape == (self.space.num_sites,)
        self.space.check_levels(levels)
        count = windows or self.num_windows
        assert 1 <= count <= self.num_windows
        cost = count / self.num_windows
        if cost > self.left + 1e-9:
            raise BudgetSpentError("spent")
        self.spent += cost
        self.calls.append((levels.copy(), count))
        return self.truth(levels, count)

    def truth(self, levels: np.ndarray, windows: int | None = None) -> float:
        """What ``kl`` measures, free of charge."""
        damage = self.tables[: windows or self.num_windows, np.arange(self.space.num_sites), levels]
        pairs = np.sqrt(damage[:, 1:] * damage[:, :-1]) @ self.together
        return float((damage.sum(axis=1) + pairs).mean())


def assert_within_and_full(space: SearchSpace, levels: np.ndarray, kept: float) -> None:
    """Inside the bound, and no single site can get one level back."""
    space.check_levels(levels)
    budget = float(budgets_of(space, np.array(kept)))
    assert space.total(levels) <= budget
    for site in np.flatnonzero(levels):
        up = levels.copy()
        up[site] -= 1
        assert space.total(up) > budget, f"site {site} can have a level back"
