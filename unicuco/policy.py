"""The policy: what training leaves behind. It answers preferences and bounds, many at once, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from botorch.utils.multi_objective.pareto import is_non_dominated

from unicuco.answers import compose
from unicuco.domains import tried_shares
from unicuco.errors import PolicyError
from unicuco.fronts import COARSE, GRID, REMEMBERED, Fronts, unbounded
from unicuco.latency import LatencyTable, read_tables
from unicuco.objectives import front, serving_scores
from unicuco.policy_parts import PolicyParts, load_parts, save_parts
from unicuco.prospects import Prospect, Prospects
from unicuco.request import Answer, Request
from unicuco.space import budgets_of
from unicuco.timed import Timed, TimedTables
from unicuco.timed_search import TimedSearch
from unicuco.wishes import Wish, budget_of, check_bytes, read_wish

BYTES_PER_PARAM = 2


class Policy:
    """Answers requests. Thread-safe: all that changes is what is remembered.

    Attributes:
        fronts: where StratNet is asked.
        prospects: what is promised for strategies.
        costs: the objectives that are no qualities: size, and latency where it was trained on.
        timed: the latency tables, by name.
    """

    def __init__(self, parts: PolicyParts, tables: Mapping[str, LatencyTable] | None = None) -> None:
        """
        Raises:
            LatencyError: a table is of another base model, or has the name of the one that was trained on.
        """
        self.parts, self.costs = parts, parts.costs
        self.timed = TimedTables(tables or {}, parts.space, parts.latency)
        self.space, self.scale = parts.space, parts.scale
        self.qualities = parts.qualities
        self.prospects = Prospects(parts)
        self.fronts = Fronts(parts.net.on_arrays(), self.costs)
        self._floor = int(self.space.total(self.space.smallest))
        self._measured_front = lru_cache(None)(self._read_measured)
        self._ladder = lru_cache(REMEMBERED)(self._lay_ladder)
        self._tables = lru_cache(REMEMBERED)(self._read_tables)

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The calibration domains, whether or not each is an objective."""
        return next((e.domains for e in self.parts.evaluations if e.domains), ())

    # -- answering ------------------------------------------------------------------------------------------------

    def answer(self, requests: Sequence[Request], bytes_per_param: int = BYTES_PER_PARAM) -> list[Answer]:
        """Answers ``requests`` in one batch, in order.

        Args:
            bytes_per_param: of the checkpoints that the answers would become: 2 for bfloat16, 4 for float32.

        Every feasible answer is within all size bounds, and within its bound on latency as its
        table sums it. A request that no strategy can meet comes back with
        ``feasible`` false and the nearest strategy there is.

        Raises:
            RequestError: a request names an objective, a domain or a latency table that this policy does not have, or
                bounds bytes where zeros save none.
        """
        tables = [self.timed.choose(request) for request in requests]
        searched = [self._is_searched(*asked) for asked in zip(requests, tables, strict=True)]
        direct = [request for request, search in zip(requests, searched, strict=True) if not search]
        answered = iter(self._directly(direct, bytes_per_param))
        answers = []
        for request, table, search in zip(requests, tables, searched, strict=True):
            if not search:
                answer = next(answered)
            else:
                assert table is not None  # chosen above, or refused
                answer = TimedSearch(self, table, bytes_per_param).answer(request)
            answers.append(answer if table is None else table.say(answer))
        return answers

    def _is_searched(self, request: Request, table: Timed | None) -> bool:
        """Whether StratNet alone cannot answer: a bound on latency, or a wish for it by a table that is new to it."""
        foreign = len(self.costs) == 1 or table is None or table.name != self.timed.own
        return request.max_latency_ms is not None or (request.weighs_latency and foreign)

    def _directly(self, requests: Sequence[Request], bytes_per_param: int) -> list[Answer]:
        """StratNet's answers, or measured ones that are better."""
        if not requests:
            return []
        wanted = [self.read(request) for request in requests]
        budgets = np.array([budget_of(request, self.space, bytes_per_param) for request in requests])
        floor = self._floor
        reachable = np.maximum(budgets, floor)
        preference = self._preferences(requests, wanted, reachable)
        wishes = self.fronts.ask(preference)
        own = self.space.project(wishes, {"params": self._own_budgets(wanted, wishes, reachable)})
        prospects, origins = self._better_measured(wanted, preference, own, reachable, bytes_per_param)
        chosen = zip(requests, wanted, prospects, origins, preference.tolist(), budgets.tolist(), strict=True)
        return [
            compose(request, wish, prospect, origin, asked, budget, floor, self.scale.kept_low)
            for request, wish, prospect, origin, asked, budget in chosen
        ]

    def with_table(self, name: str, table: LatencyTable) -> Policy:
        """The same policy with one more latency table, or with another one of that name.

        Raises:
            LatencyError: it is of another base model.
        """
        return Policy(self.parts, {**self.timed.tables, name: table})

    def check_request(self, request: Request, bytes_per_param: int = BYTES_PER_PARAM) -> None:
        """Raises RequestError where a request names something that this policy does not have, or bounds bytes where
        zeros save none."""
        self.timed.choose(request)
        self.read(request)
        check_bytes(request, self.space, bytes_per_param)

    def read(self, request: Request) -> Wish:
        """What ``request`` asks of this policy.

        Raises:
            RequestError: it names an objective or a domain that the policy does not have.
        """
        return read_wish(request, self.qualities.names, self.domains, bool(self.timed.names))

    def _lay_ladder(self, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameter budgets from small to dense, and the upper ends of the KL intervals of StratNet's answer to each.

        Returns:
            budgets (``n``), of the mean KL (``n``) and of every domain that is an objective (``n x num_domains``).
        """
        budgets = budgets_of(self.space, np.linspace(self.scale.kept_low, 1.0, GRID if len(shares) == 1 else COARSE))
        wish = unbounded(shares)
        preference = self.fronts.joined(self.fronts.cost_weight(budgets, shares), [wish])
        own = self.space.project(self.fronts.ask(preference), {"params": budgets})
        found, _ = self._better_measured([wish] * len(budgets), preference, own, budgets, BYTES_PER_PARAM)
        upper = np.array([prospect.mean.kl_high for prospect in found])
        of_domains = np.array([[promise.kl_high for promise in prospect.domains.values()] for prospect in found])
        return budgets, upper, of_domains

    def _smallest(self, wish: Wish) -> tuple[float, tuple[float, ...]]:
        """The smallest budget at which the wish's bounds on quality are met, and the shares at which they are.

        Shares that nobody asked for are tried where a single domain is bounded: the best are those that prune most.
        """
        bounded = min(wish.max_domain_kl) < np.inf
        found, best = float(self.space.geometry.params), wish.shares
        for shares in tried_shares(len(wish.shares)) if wish.free and bounded else [wish.shares]:
            budgets, upper, of_domains = self._ladder(shares)
            met = upper <= wish.max_kl
            if of_domains.shape[1]:
                met &= (of_domains <= np.array(wish.max_domain_kl)).all(axis=1)
            if met.any() and budgets[met.argmax()] < found:
                found, best = float(budgets[met.argmax()]), shares
        return found, best

    def damage_tables(self, kept: float) -> np.ndarray | None:
        """Every quality's additive damages around a size (``num_qualities x num_sites x max_levels``); None: plain."""
        return self._tables(round(20 * kept) / 20) if self.qualities.has_tables else None

    def _read_tables(self, kept: float) -> np.ndarray:
        return np.stack([surrogate.tables(np.array([kept]))[0] for surrogate in self.qualities.surrogates])

    def _preferences(self, requests: Sequence[Request], wishes: Sequence[Wish], budgets: np.ndarray) -> np.ndarray:
        """The preference to ask StratNet at (``n x num_objectives``): the request's own, or the one that fits its size.

        Lowers ``budgets`` to the smallest that meets a bound on quality.
        """
        weights, asked = np.empty(len(requests)), list(wishes)
        for i, wish in enumerate(wishes):
            if wish.bounds_quality:
                smallest, shares = self._smallest(wish)
                asked[i], budgets[i] = replace(wish, shares=shares), min(budgets[i], smallest)
        fronts = [(wish.shares, wish.of_costs) for wish in asked]
        distinct = set(fronts)
        for own in distinct:
            rows = [i for i, of_wish in enumerate(fronts) if of_wish == own] if len(distinct) > 1 else slice(None)
            weights[rows] = self.fronts.cost_weight(budgets[rows], *own)
        for i, wish in enumerate(wishes):
            if wish.cost_weight is not None:
                weights[i] = max(wish.cost_weight, weights[i]) if requests[i].bounds_size else wish.cost_weight
        return self.fronts.joined(weights, asked)

    def _own_budgets(self, wanted: Sequence[Wish], wishes: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """For preferences, the size that StratNet chose itself (rounded up to a level); else the bound."""
        own = budgets.astype(np.float64).copy()
        rows = [i for i, wish in enumerate(wanted) if wish.cost_weight is not None]
        if rows:
            own[rows] = np.minimum(own[rows], self.space.total(self.space.snap(wishes[rows])))
        return own

    @cached_property
    def measured_levels(self) -> np.ndarray:
        """Level indices of the measured front of all objectives (``m x num_sites``)."""
        done = self.parts.evaluations
        costs = self.costs(np.array([e.levels for e in done], dtype=np.int64).reshape(-1, self.space.num_sites))
        points = np.column_stack([costs, self.qualities.measured(done)])
        if points.shape[1] == 2:
            best = front(points)
        else:
            best = np.flatnonzero(np.isfinite(points).all(axis=1))
            best = best[is_non_dominated(torch.as_tensor(-points[best])).numpy()]
        return np.array([done[i].levels for i in best], dtype=np.int64).reshape(-1, self.space.num_sites)

    def _read_measured(self, bytes_per_param: int) -> tuple[list[Prospect], np.ndarray, np.ndarray]:
        """The measured front: prospects, objectives (``m x num_objectives``) and parameters (``m``)."""
        found = self.prospects(self.measured_levels, bytes_per_param)
        params = np.array([prospect.size.params for prospect in found])
        return found, np.array([prospect.objectives for prospect in found]), params

    def _better_measured(
        self,
        wanted: Sequence[Wish],
        preference: np.ndarray,
        own: np.ndarray,
        budgets: np.ndarray,
        bytes_per_param: int,
    ) -> tuple[list[Prospect], list[str]]:
        """StratNet's strategies, each replaced by a measured one where that is predicted to serve better.

        Args:
            preference: ``n x num_objectives``; own: StratNet's level indices, ``n x num_sites``; budgets: ``n``.

        Returns:
            prospects of the strategies, and where each came from.
        """
        found, origins = self.prospects(own, bytes_per_param), ["stratnet"] * len(own)
        measured, objectives, params = self._measured_front(bytes_per_param)
        if not measured:
            return found, origins
        by_cost = np.array([wish.cost_weight is not None for wish in wanted])
        rivals = np.empty((len(own), 1 + len(measured), objectives.shape[1]))  # of each request: its own, all measured
        rivals[:, 0], rivals[:, 1:] = [prospect.objectives for prospect in found], objectives
        scores = serving_scores(preference, rivals, by_cost, len(self.costs))
        theirs = np.where(params > budgets[:, None], np.inf, scores[:, 1:])
        best = theirs.argmin(axis=1)
        better = theirs[np.arange(len(own)), best] < scores[:, 0] - 1e-9  # the same strategy may differ by rounding
        for i in np.flatnonzero(better):
            found[i], origins[i] = measured[best[i]], "measured"
        return found, origins

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes the policy to ``folder``, replacing the one there.

        Raises:
            DiskFullError: the old one is still there, nothing is half-written.
        """
        save_parts(self.parts, folder)

    @classmethod
    def load(cls, folder: Path) -> Policy:
        """Reads a policy folder and its latency tables; needs neither the base model nor the preparation.

        Raises:
            PolicyError: there is none, or it is broken or of another format. LatencyError: a table is.
        """
        return cls(load_parts(folder), read_tables(folder))

    def check_model(self, digest: str, spec: str) -> None:
        """Refuses a base model with other content than the policy was trained for.

        Raises:
            PolicyError: naming both.
        """
        model = self.parts.provenance.get("model", {})
        if model.get("digest") != digest:
            raise PolicyError(
                f"The policy was trained for {model.get('spec', 'another base model')} (content "
                f"{str(model.get('digest'))[:12]}), not for {spec} (content {digest[:12]})."
            )
