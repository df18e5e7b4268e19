"""Answers within a bound on latency: the best predicted quality whose milliseconds add up to no more.

What a sublayer costs in time is not what it costs in parameters: an attention takes more of a token's time than its
parameters say. So the front of size is not cut to the bound. Candidates are StratNet's strategies projected onto the
bounds, a knapsack of the surrogate's damages over latency, and measured strategies; the best of them, as the surrogate
sees it, then has levels exchanged as long as that helps. (Ours; measured in docs/decisions.md.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unicuco.answers import broken_bound, compose
from unicuco.domains import tried_shares
from unicuco.latency import NANOSECONDS
from unicuco.objectives import serving_scores
from unicuco.prospects import Prospect
from unicuco.request import Answer, Request
from unicuco.timed import Bound, Timed
from unicuco.wishes import Wish, budget_of, read_wish

if TYPE_CHECKING:
    from unicuco.policy import Policy

MIXES = (1.0, 0.8, 0.5, 0.2, 0.0)
"""Weights of latency against parameters in the knapsack's price, where both are bounded."""
STEPS = 40
"""Bisections of a knapsack's multiplier."""
EXCHANGES, JUDGED = 4, 24
"""Rounds of exchanging levels, and exchanges that the surrogate judges in each."""
NARROWED = 7
"""Bisections for the smallest size that keeps a bound on quality."""


@dataclass(frozen=True)
class Found:
    """A strategy within the bounds. ``preference``: at which StratNet was asked (``num_objectives``)."""

    levels: np.ndarray
    prospect: Prospect
    origin: str
    score: float
    preference: np.ndarray


class TimedSearch:
    """Answers of one policy by one table."""

    def __init__(self, policy: Policy, timed: Timed, bytes_per_param: int) -> None:
        self._policy, self._timed, self._bytes = policy, timed, bytes_per_param
        self._space = policy.space
        self._floor = int(policy.space.total(policy.space.smallest))

    def answer(self, request: Request) -> Answer:
        """The answer to a request that bounds latency; without what it says of latency itself."""
        policy, timed = self._policy, self._timed
        assert request.max_latency_ms is not None
        wish = read_wish(request, policy.qualities.names, policy.domains)
        budget = budget_of(request, self._space, self._bytes)
        allowed = math.floor(request.max_latency_ms * NANOSECONDS + 1e-6)
        limits: dict[Bound, float] = {"params": max(budget, self._floor), "latency": max(allowed, timed.floor)}
        found = self._best(wish, limits)
        said = compose(
            request, wish, found.prospect, found.origin, found.preference.tolist(), budget, self._floor,
            policy.scale.kept_low,
        )  # fmt: skip
        if allowed >= timed.floor:
            return said
        note = (
            f"Impossible: the fastest strategy takes {timed.floor / NANOSECONDS:.4g} ms (latency table "
            f"'{timed.name}'), over the bound of {request.max_latency_ms:g} ms; this is the nearest."
        )
        return said.model_copy(update={"feasible": False, "note": note if budget >= self._floor else said.note})

    def _best(self, wish: Wish, limits: dict[Bound, float]) -> Found:
        """Best quality within the limits; where a bound on quality is kept, the smallest strategy that keeps it."""
        if not wish.bounds_quality:
            return self._within(wish, wish.shares, limits)
        free = wish.free and min(wish.max_domain_kl) < np.inf
        several = tried_shares(len(wish.shares)) if free else [wish.shares]
        tried = [self._smallest(wish, shares, limits) for shares in several]
        keeping = [found for found in tried if _keeps(wish, found)]
        return min(keeping, key=lambda found: found.prospect.size.params) if keeping else tried[0]

    def _smallest(self, wish: Wish, shares: tuple[float, ...], limits: dict[Bound, float]) -> Found:
        best = self._within(wish, shares, limits)
        if not _keeps(wish, best):
            return best
        low, high = float(self._floor), float(best.prospect.size.params)
        for _ in range(NARROWED):
            middle = (low + high) / 2
            found = self._within(wish, shares, {**limits, "params": middle})
            if _keeps(wish, found):
                best, high = found, float(found.prospect.size.params)
            else:
                low = middle
        return best

    def _within(self, wish: Wish, shares: tuple[float, ...], limits: dict[Bound, float]) -> Found:
        """The best strategy within the limits for these shares of the qualities."""
        preference = self._preference(wish, shares, limits)
        if wish.size_weight is not None:  # StratNet's own size, where the bounds allow it
            own = self._policy.ask(preference[None])
            size = int(self._space.total(self._space.snap(own))[0])
            limits = {**limits, "params": max(min(limits["params"], size), self._floor)}
        weights = np.clip(preference[0] * np.array([1.0, 0.6, 0.8, 1.2, 1.5]), 0.002, 0.998)
        asked = np.column_stack([weights, (1 - weights)[:, None] * np.array([shares])])
        asked[0] = preference
        levels = self._timed.project(self._policy.ask(asked), limits)
        origins = ["stratnet"] * len(levels)
        damage = self._damage(levels[0], shares)
        if damage is not None:
            allocated = self._allocate(damage, limits)
            levels, origins = np.vstack([levels, allocated]), origins + ["allocation"] * len(allocated)
        measured = self._policy.measured_levels
        if len(measured):
            fits = (self._space.total(measured) <= limits["params"]) & (
                self._timed.total(measured) <= limits["latency"]
            )
            levels, origins = np.vstack([levels, measured[fits]]), origins + ["measured"] * int(fits.sum())
        found = self._pick(wish, preference, levels, origins)
        return found if damage is None else self._repair(wish, found, damage, limits)

    def _preference(self, wish: Wish, shares: tuple[float, ...], limits: dict[Bound, float]) -> np.ndarray:
        """Where StratNet's own answers come down to the limits (``num_objectives``); or what was asked, if smaller."""
        weight = max(
            float(self._policy.size_weight(np.array([limits["params"]]), shares)[0]),
            self._weight_in_time(limits["latency"], shares),
            wish.size_weight or 0.0,
        )
        return np.array([weight, *((1 - weight) * share for share in shares)])

    def _weight_in_time(self, nanoseconds: float, shares: tuple[float, ...]) -> float:
        weights = np.linspace(0.002, 0.998, 64)
        asked = np.column_stack([weights, (1 - weights)[:, None] * np.array([shares])])
        taken = np.minimum.accumulate(self._timed.total(self._space.snap(self._policy.ask(asked))))
        return float(np.interp(nanoseconds, taken[::-1], weights[::-1]))

    def _pick(self, wish: Wish, preference: np.ndarray, levels: np.ndarray, origins: list[str]) -> Found:
        """The best of some strategies; of equals the first."""
        prospects = self._policy.prospects(levels, self._bytes)
        objectives = np.array([prospect.objectives for prospect in prospects])
        scores = serving_scores(preference[None], objectives[None], np.array([wish.size_weight is not None]))[0]
        best = int(np.argmax(scores <= scores.min() + 1e-9))
        return Found(levels[best], prospects[best], origins[best], float(scores[best]), preference)

    # -- additive damages -----------------------------------------------------------------------------------------

    def _damage(self, near: np.ndarray, shares: tuple[float, ...]) -> np.ndarray | None:
        """What each level costs in quality, for strategies like ``near`` (``num_sites x max_levels``); see
        ``Qualities.allocate``. None in the plain form, which has no such tables."""
        tables = self._policy.damage_tables(float(self._space.kept(near)))
        if tables is None:
            return None
        lost = np.maximum(tables[:, np.arange(len(near)), near].sum(axis=1), 1e-9)
        weights = np.maximum(shares, 1e-3) / self._policy.scale.ranges / lost
        return np.where(np.isinf(self._space.levels), np.inf, np.einsum("d,dsl->sl", weights, tables))

    def _allocate(self, damage: np.ndarray, limits: dict[Bound, float]) -> np.ndarray:
        """Strategies within the limits that lose least, one per mix of prices (``n x num_sites``).

        Bisection on the multiplier of the price, then levels are given back while one fits.
        """
        costs, sites = self._timed.costs, np.arange(len(damage))
        room = {b: limit - self._timed.fixed[b] for b, limit in limits.items()}
        both = room["params"] < costs["params"][:, 0].sum()
        mixes = np.array(MIXES if both else MIXES[:1])[:, None, None]
        dense = {b: float(cost[:, 0].sum()) for b, cost in costs.items()}
        price = mixes * costs["latency"] / dense["latency"] + (1 - mixes) * costs["params"] / dense["params"]
        low, high = np.full(len(mixes), -30.0), np.full(len(mixes), 30.0)

        def best(multiplier: np.ndarray) -> np.ndarray:
            return (damage + np.exp(multiplier)[:, None, None] * price).argmin(axis=2)

        def fits(levels: np.ndarray) -> np.ndarray:
            return np.all([costs[b][sites, levels].sum(axis=1) <= room[b] for b in room], axis=0)

        for _ in range(STEPS):
            middle = (low + high) / 2
            fit = fits(best(middle))
            low, high = np.where(fit, low, middle), np.where(fit, middle, high)
        found = best(high)
        return np.array([self._fill(row, damage, room) for row in found[fits(found)]]).reshape(-1, len(damage))

    def _fill(self, levels: np.ndarray, damage: np.ndarray, room: dict[Bound, float]) -> np.ndarray:
        """Gives levels back, most damage for the dearest of its prices first, while one fits."""
        costs, sites, levels = self._timed.costs, np.arange(len(damage)), levels.copy()
        while True:
            left = {b: room[b] - costs[b][sites, levels].sum() for b in room}
            extra = {b: costs[b] - costs[b][sites, levels][:, None] for b in room}
            possible = np.arange(damage.shape[1]) < levels[:, None]
            share = np.full(damage.shape, 1e-12)
            for b in room:
                possible &= extra[b] <= left[b]
                share = np.maximum(share, extra[b] / max(left[b], 1))
            if not possible.any():
                return levels
            gain = damage[sites, levels][:, None] - np.where(np.isinf(damage), 0.0, damage)
            site, level = np.unravel_index(np.where(possible, gain / share, -np.inf).argmax(), damage.shape)
            levels[site] = level

    def _repair(self, wish: Wish, found: Found, damage: np.ndarray, limits: dict[Bound, float]) -> Found:
        """Exchanges levels of two sites as long as the surrogate likes the result better."""
        room = {b: limit - self._timed.fixed[b] for b, limit in limits.items()}
        for _ in range(EXCHANGES):
            tried = self._exchanges(found.levels, damage, room)
            if not len(tried):
                break
            best = self._pick(wish, found.preference, tried, ["repaired"] * len(tried))
            if best.score >= found.score - 1e-9:
                break
            found = best
        return found

    def _exchanges(self, levels: np.ndarray, damage: np.ndarray, room: dict[Bound, float]) -> np.ndarray:
        """The most promising strategies within the limits in which one site gives levels and another one gets some."""
        costs, sites = self._timed.costs, np.arange(len(damage))
        last = self._space.num_levels - 1
        reach = [
            (s, levels[s] + step) for s in sites for step in (-3, -2, -1, 1, 2, 3) if 0 <= levels[s] + step <= last[s]
        ]
        if not reach:
            return np.empty((0, len(levels)), dtype=np.int64)
        site, to = np.array(reach).T
        change = damage[site, to] - damage[site, levels[site]]
        up = to < levels[site]
        gets, gives = np.flatnonzero(up), np.flatnonzero(~up)
        allowed = site[gets][:, None] != site[gives][None]
        for b in room:
            more = costs[b][site, to] - costs[b][site, levels[site]]
            left = room[b] - costs[b][sites, levels].sum()
            allowed &= more[gets][:, None] + more[gives][None] <= left
        gain = np.where(allowed, change[gets][:, None] + change[gives][None], np.inf)
        order = np.argsort(gain, axis=None, kind="stable")[:JUDGED]
        tried = []
        for get, give in zip(*np.unravel_index(order, gain.shape), strict=True):
            if np.isfinite(gain[get, give]):
                row = levels.copy()
                row[site[gets[get]]], row[site[gives[give]]] = to[gets[get]], to[gives[give]]
                tried.append(row)
        return np.array(tried, dtype=np.int64).reshape(-1, len(levels))


def _keeps(wish: Wish, found: Found) -> bool:
    return not broken_bound(wish, found.prospect.mean, found.prospect.domains)
