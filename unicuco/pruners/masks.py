"""Which weights go: those with the lowest scores, of a matrix, of each of its rows, or of every M in a row (N:M).

Ties: among equal scores the earlier column goes first, then the earlier row. Scores tie often, since a base model from
a 4-bit file has only sixteen different weights per group of 32: with "all up to a threshold" far more would go than
asked for, and with an unstable sort others on every machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from unicuco.errors import StrategyError


@dataclass(frozen=True)
class Pattern:
    """At most ``n`` of every ``m`` neighbours in a row are left, counted from the first column."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``2:4`` and the like.

        Raises:
            StrategyError: it says what is allowed.
        """
        found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text.strip())
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise StrategyError(f"'{text}' is no pattern: write N:M with N < M, such as 2:4 or 4:8.")
        return cls(int(found[1]), int(found[2]))


def lowest(scores: Tensor, count: int) -> Tensor:
    """Where the ``count`` lowest of all ``rows x columns`` scores are."""
    # Columns first: ties are broken in this order.
    return lowest_of_rows(scores.T.reshape(1, -1), count).view(scores.shape[1], scores.shape[0]).T


def lowest_of_rows(scores: Tensor, count: int) -> Tensor:
    """Where the ``count`` lowest of each row of ``rows x columns`` scores are.

    By selection, not by sorting: all below the last one that goes, and of those equal to it as many as are missing.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = scores.kthvalue(count, dim=1, keepdim=True).values
    below, equal = scores < last, scores == last
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (equal & (equal.cumsum(dim=1) <= missing))


def lowest_of_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Where the lowest ``m - n`` of every ``m`` neighbours are (``rows x columns``).

    Raises:
        StrategyError: the columns do not divide into groups.
    """
    rows, columns = scores.shape
    if columns % pattern.m:
        raise StrategyError(f"A matrix with {columns} columns does not divide into groups of {pattern.m} ({pattern}).")
    return lowest_of_rows(scores.reshape(-1, pattern.m), pattern.m - pattern.n).view(rows, columns)
