"""Which candidates measure margins too, and on which windows."""

from __future__ import annotations

from collections.abc import Iterable

from unicuco.evaluations import MARGINS_COST

BEST_KNOWN = ("prior", "stratnet", "allocation", "thompson")
"""Origins of proposals that are somebody's best guess, not a disturbed one."""
APART = 3
"""Margins keep their distance in size from so many before them."""


class Bases:
    """Spreads margins evenly over a run, over the sizes and over their windows.

    They go to strategies that are thought best: what they say holds around a strategy, and around bad ones nobody will
    look again. Each has other windows than the last, as far as there are any: a site's slope differs by a third between
    draws of 2,048 tokens, and only a mean over many draws is about text in general.
    """

    def __init__(self, groups: int, share: float, budget: float, kept_low: float, known: Iterable[float] = ()) -> None:
        """
        Args:
            groups: of margin windows; 0: nobody measures margins.
            share: of the ``budget`` (standard evaluations) that margins may cost.
            known: kept shares of the strategies that have margins already, oldest first.
        """
        self.groups, self._share, self._budget, self._low = groups, share, budget, kept_low
        self._kept = list(known)

    def __len__(self) -> int:
        return len(self._kept)

    def choose(self, kept: float, origin: str, spent: float) -> int:
        """The group of windows for a new candidate of size ``kept``, which then counts as a base; -1: no margins.

        Args:
            spent: standard evaluations so far.
        """
        if not self.groups or origin not in BEST_KNOWN:
            return -1
        asked = MARGINS_COST * (len(self._kept) + 1)
        pace = min(self._budget, 1.5 * (spent + 8))
        if asked > self._share * pace or spent + 1 + MARGINS_COST > self._budget:
            return -1
        recent = self._kept[-APART:]
        gap = min(abs(kept - other) for other in [self._low - 0.1, 1.05, *recent])
        if gap < (1 - self._low) / (4 * (1 + len(recent))):
            return -1
        self._kept.append(kept)
        return (len(self._kept) - 1) % self.groups
