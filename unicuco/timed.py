"""Latency tables on a policy's own space: exact sums, projection onto a bound, and what answers say of latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from unicuco.errors import RequestError
from unicuco.latency import NANOSECONDS, LatencyError, LatencyTable, NamedTable
from unicuco.projection import Projection
from unicuco.request import Answer, Request
from unicuco.space import SearchSpace

Bound = Literal["params", "latency"]


class Timed:
    """One table on one space; all sums in whole nanoseconds.

    Attributes:
        costs: per bound, what a site costs at each level (``num_sites x max_levels``).
        fixed: what no strategy can remove; floor, dense: nanoseconds of the fastest and of the dense one.
    """

    def __init__(self, name: str, table: LatencyTable, space: SearchSpace) -> None:
        """
        Raises:
            LatencyError: the table is of another base model.
        """
        nanoseconds, fixed = table.nanoseconds(space)
        self.name, self.table = name, table
        self.costs: dict[Bound, np.ndarray] = {"params": space.tables["params"], "latency": nanoseconds}
        self.fixed: dict[Bound, int] = {"params": space.fixed["params"], "latency": fixed}
        self._sites = np.arange(space.num_sites)
        self._projection: Projection[Bound] = Projection(space.levels, space.num_levels, self.costs)
        self.floor = int(self.total(space.smallest))
        self.dense = int(self.total(np.zeros(space.num_sites, dtype=np.int64)))

    def total(self, levels: np.ndarray) -> np.ndarray:
        """Nanoseconds of level indices ``... x num_sites`` (``...``)."""
        return self.costs["latency"][self._sites, levels].sum(axis=-1) + self.fixed["latency"]

    def project(self, x: np.ndarray, limits: Mapping[Bound, float]) -> np.ndarray:
        """The legal strategies nearest to ``x`` (``n x num_sites``) within both limits, fixed parts included.

        The limits are not below what the smallest strategy has.
        """
        return self._projection.within(x, {b: np.full(len(x), limit - self.fixed[b]) for b, limit in limits.items()})

    def say(self, answer: Answer) -> Answer:
        """``answer`` with its latency."""
        own = {"latency_ms": int(self.total(np.array(answer.levels))) / NANOSECONDS, "latency_table": self.name}
        error = self.table.error
        return answer.model_copy(update={**own, "latency_error": error if math.isfinite(error) else None})


class TimedTables:
    """A policy's tables by name."""

    def __init__(self, tables: Mapping[str, LatencyTable], space: SearchSpace, own: NamedTable | None = None) -> None:
        """
        Args:
            own: the one that the policy was trained on: it is meant where a request names none.

        Raises:
            LatencyError: a table is of another base model, or another one has the name of ``own``.
        """
        self.own = own.name if own is not None else None
        if own is not None:
            if tables.get(own.name, own.table) != own.table:
                raise LatencyError(
                    f"Table '{own.name}' is another one than this policy was trained on, under the same name: give it "
                    "a name of its own."
                )
            tables = {own.name: own.table, **tables}
        self._tables = {}
        for name, table in tables.items():
            try:
                self._tables[name] = Timed(name, table, space)
            except LatencyError as error:
                raise LatencyError(f"Table '{name}': {error}") from error

    @property
    def tables(self) -> dict[str, LatencyTable]:
        return {name: timed.table for name, timed in self._tables.items()}

    @property
    def names(self) -> list[str]:
        return list(self._tables)

    def __getitem__(self, name: str) -> Timed:
        return self._tables[name]

    def choose(self, request: Request) -> Timed | None:
        """The table that ``request`` names, the policy's own, or the only one.

        ``None``: the request neither bounds nor prefers latency, and names none of several.

        Raises:
            RequestError: there is no such table, or it must name one.
        """
        who = f"Request '{request.id}'" if request.id else "The request"
        if request.latency is not None:
            if request.latency not in self._tables:
                known = f"this policy knows {', '.join(self._tables)}" if self._tables else "this policy has none"
                raise RequestError(f"{who} names the latency table '{request.latency}'; {known}.")
            return self._tables[request.latency]
        if self.own is not None:
            return self._tables[self.own]
        if len(self._tables) == 1:
            return next(iter(self._tables.values()))
        if request.max_latency_ms is None and not request.weighs_latency:
            return None
        does = "bounds" if request.max_latency_ms is not None else "prefers"
        if not self._tables:
            raise RequestError(
                f"{who} {does} latency, but this policy has no latency table: make one by 'unicuco profile' and give "
                "it by --latency, or put it into the run's folder 'latency'."
            )
        raise RequestError(f"{who} {does} latency: name a table by 'latency', of {', '.join(self._tables)}.")
