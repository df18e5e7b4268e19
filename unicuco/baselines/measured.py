"""What a rival has measured within its share of the oracle's budget, and the answers that follow from it."""

from __future__ import annotations

import numpy as np

from unicuco.baselines.oracle import BudgetSpentError, Oracle
from unicuco.baselines.uniform import uniform
from unicuco.space import SearchSpace, budgets_of

_ROUNDING = 1e-9
"""Shares of an evaluation add up to whole ones only up to rounding."""


class Measured:
    """An oracle with a share of its budget; remembers every strategy measured on all windows.

    Attributes:
        levels: ``num_sites`` level indices of each, in the order of measurement.
        kl: the KL of each, nats per token.
    """

    def __init__(self, oracle: Oracle, evaluations: float) -> None:
        self.levels: list[np.ndarray] = []
        self.kl: list[float] = []
        self._oracle = oracle
        self._share = evaluations
        self._spent = 0.0
        self._known: set[bytes] = set()

    @property
    def left(self) -> float:
        """Standard evaluations that may still be spent."""
        return max(min(self._share - self._spent, self._oracle.left), 0.0)

    @property
    def whole_left(self) -> int:
        """Evaluations on all windows that may still be made."""
        return int(self.left + _ROUNDING)

    def measure(self, levels: np.ndarray, windows: int | None = None) -> float:
        """KL of ``num_sites`` level indices, on the first ``windows`` search windows or on all.

        Raises:
            BudgetSpentError: this rival's share or the oracle's budget does not cover it; nothing was charged.
        """
        all_windows = windows is None or windows >= self._oracle.num_windows
        cost = 1.0 if windows is None or all_windows else windows / self._oracle.num_windows
        if cost > self._share - self._spent + _ROUNDING:
            raise BudgetSpentError(f"{self._share - self._spent:.3g} evaluations are left, {cost:.3g} were asked for.")
        kl = self._oracle.kl(levels, None if all_windows else windows)
        self._spent += cost
        if all_windows:
            self.levels.append(np.array(levels))
            self.kl.append(kl)
            self._known.add(np.asarray(levels, dtype=np.int64).tobytes())
        return kl

    def knows(self, levels: np.ndarray) -> bool:
        """Whether ``levels`` was measured on all windows."""
        return np.asarray(levels, dtype=np.int64).tobytes() in self._known

    def answers(self, kept: np.ndarray) -> np.ndarray:
        """For each size the strategy of smallest measured KL within it, filled up evenly.

        Args:
            kept: ``n`` sizes. One with nothing measured within it gets uniform pruning.

        Returns:
            ``n x num_sites`` level indices.
        """
        space = self._oracle.space
        budgets = budgets_of(space, np.asarray(kept, dtype=np.float64))
        answers = [uniform(space, float(k), True) for k in kept]
        if self.levels:
            levels, kl = np.array(self.levels), np.array(self.kl)
            sizes = space.total(levels)
            for i, budget in enumerate(budgets):
                if (sizes <= budget).any():
                    best = levels[np.where(sizes <= budget, kl, np.inf).argmin()]
                    answers[i] = space.project(space.sparsities(best)[None], {"params": budget})[0]
        return np.array(answers)


def starts(space: SearchSpace, kept: float) -> list[np.ndarray]:
    """Both forms of uniform pruning at ``kept`` (``num_sites`` level indices each), once where they agree."""
    forms = [uniform(space, kept, True), uniform(space, kept, False)]
    return forms[:1] if (forms[0] == forms[1]).all() else forms


def random_strategies(space: SearchSpace, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One strategy per size, its sparsities uniform and scaled to the size (``len(kept) x num_sites`` indices)."""
    kept = np.asarray(kept, dtype=np.float64)
    sparsity = rng.random((len(kept), space.num_sites))
    wish = sparsity * (1 - kept)[:, None] / sparsity.mean(axis=1, keepdims=True)
    return space.project(wish.clip(0, 1), {"params": budgets_of(space, kept)})
