"""Answers within a bound on latency: the best predicted quality whose milliseconds add up to no more.

What a sublayer costs in time is not what it costs in parameters: an attention takes more of a token's time than its
parameters say. So the front of size is not cut to the bound. Candidates are StratNet's strategies projected onto the
bounds, a knapsack of the surrogate's damages over latency, and measured strategies; the best of them, as the surrogate
sees it, then has levels exchanged as long as that helps. A StratNet that was trained on latency by the same table is
asked for it; one that was not can still be asked to weigh it: the candidates are then for every price, and the best
trade is picked. (Ours; measured in docs/decisions.md.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from unicuco.answers import broken_bound, compose
from unicuco.costs import Costs
from unicuco.domains import tried_shares
from unicuco.latency import NANOSECONDS
from unicuco.objectives import serving_scores
from unicuco.prospects import Prospect
from unicuco.request import Answer, Request
from unicuco.timed import Bound, Timed
from unicuco.timed_allocation import allocate_within, exchanges
from unicuco.wishes import Wish, budget_of

if TYPE_CHECKING:
    from unicuco.policy import Policy

NEAR = (0.6, 0.8, 1.2, 1.5)
"""Multiples of a weight at which StratNet is asked beside it."""
BALANCES = ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))
"""Shares of size and latency at which a StratNet that knows both is asked, where bounds leave them open."""
PRICED = 33
"""Prices from the smallest to dense, where a preference leaves them open."""
EXCHANGES = 4
"""Rounds of exchanging levels."""
NARROWED = 7
"""Bisections for the smallest size that keeps a bound on quality."""


@dataclass(frozen=True)
class Found:
    """A strategy within the bounds. ``preference``: at which StratNet was asked (``num_objectives``), where costs have
    the ``weight``."""

    levels: np.ndarray
    prospect: Prospect
    origin: str
    score: float
    weight: float
    preference: np.ndarray


class TimedSearch:
    """Answers of one policy by one table."""

    def __init__(self, policy: Policy, timed: Timed, bytes_per_param: int) -> None:
        self._policy, self._timed, self._bytes = policy, timed, bytes_per_param
        self._space = policy.space
        self._costs = Costs(policy.space, timed.table)
        self._knows = len(policy.costs) > 1 and timed.name == policy.timed.own
        self._floor = int(policy.space.total(policy.space.smallest))

    def answer(self, request: Request) -> Answer:
        """The answer to a request that bounds or prefers latency; without what it says of latency itself."""
        policy, timed, bound = self._policy, self._timed, request.max_latency_ms
        wish = policy.read(request)
        budget = budget_of(request, self._space, self._bytes)
        allowed = timed.dense if bound is None else math.floor(bound * NANOSECONDS + 1e-6)
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
            f"'{timed.name}'), over the bound of {bound:g} ms; this is the nearest."
        )
        return said.model_copy(update={"feasible": False, "note": note if budget >= self._floor else said.note})

    def _best(self, wish: Wish, limits: dict[Bound, float]) -> Found:
        """Best quality within the limits; where a bound on quality is kept, the smallest strategy that keeps it."""
        if not wish.bounds_quality:
            return self._within(wish, limits)
        free = wish.free and min(wish.max_domain_kl) < np.inf
        several = tried_shares(len(wish.shares)) if free else [wish.shares]
        tried = [self._smallest(replace(wish, shares=shares), limits) for shares in several]
        keeping = [found for found in tried if _keeps(wish, found)]
        return min(keeping, key=lambda found: found.prospect.size.params) if keeping else tried[0]

    def _smallest(self, wish: Wish, limits: dict[Bound, float]) -> Found:
        best = self._within(wish, limits)
        if not _keeps(wish, best):
            return best
        low, high = float(self._floor), float(best.prospect.size.params)
        for _ in range(NARROWED):
            middle = (low + high) / 2
            found = self._within(wish, {**limits, "params": middle})
            if _keeps(wish, found):
                best, high = found, float(found.prospect.size.params)
            else:
                low = middle
        return best

    def _within(self, wish: Wish, limits: dict[Bound, float]) -> Found:
        """The best strategy within the limits."""
        if wish.cost_weight is not None and wish.of_costs[1] > 0:
            return self._weighed(wish, wish.cost_weight, limits)
        balances = BALANCES if self._knows and wish.cost_weight is None else (wish.of_costs,)
        wishes = [replace(wish, of_costs=of_costs) for of_costs in balances]
        weights = [self._weight(own, limits) for own in wishes]
        asked = [self._ask(own, _near(weight)) for own, weight in zip(wishes, weights, strict=True)]
        preference = self._policy.fronts.joined(np.array(weights[:1]), wishes[:1])[0]
        if wish.cost_weight is not None:  # StratNet's own size, where the bounds allow it
            size = int(self._space.total(self._space.snap(asked[0][:1]))[0])
            limits = {**limits, "params": max(min(limits["params"], size), self._floor)}
        levels = self._timed.project(np.vstack(asked), limits)
        origins = ["stratnet"] * len(levels)
        damage = self._damage(levels[0], wish.shares)
        if damage is not None:
            allocated = allocate_within(self._timed, damage, limits)
            levels, origins = np.vstack([levels, allocated]), origins + ["allocation"] * len(allocated)
        measured = self._measured(limits)
        levels, origins = np.vstack([levels, measured]), origins + ["measured"] * len(measured)
        found = self._pick(wish, weights[0], preference, levels, origins)
        return found if damage is None else self._repair(wish, found, damage, limits)

    def _weighed(self, wish: Wish, weight: float, limits: dict[Bound, float]) -> Found:
        """The best trade of size and latency, as ``wish`` weighs them, against quality, within the limits."""
        own = wish if self._knows else replace(wish, of_costs=(1.0, 0.0))
        asked = self._ask(own, _near(weight) if self._knows else np.linspace(0.002, 0.998, 64))
        levels = self._space.snap(asked)
        over = ~self._fit(levels, limits)
        if over.any():
            levels[over] = self._timed.project(asked[over], limits)
        origins = ["stratnet"] * len(levels)
        qualities, scale = self._policy.qualities, self._policy.scale
        if qualities.has_tables:
            prices = self._costs.prices(np.tile(wish.of_costs, (PRICED, 1)))
            left, shares = np.linspace(scale.kept_low, 1.0, PRICED), np.tile(wish.shares, (PRICED, 1))
            priced = qualities.allocate(left, shares, scale.ranges, prices=prices)
            priced = priced[self._fit(priced, limits)]
            levels, origins = np.vstack([levels, priced]), origins + ["allocation"] * len(priced)
        measured = self._measured(limits)
        levels, origins = np.vstack([levels, measured]), origins + ["measured"] * len(measured)
        found = self._pick(wish, weight, self._policy.fronts.joined(np.array([weight]), [own])[0], levels, origins)
        damage = self._damage(found.levels, wish.shares)
        own_limits: dict[Bound, float] = {
            "params": float(self._space.total(found.levels)),
            "latency": float(self._timed.total(found.levels)),
        }
        return found if damage is None else self._repair(wish, found, damage, own_limits)

    def _ask(self, wish: Wish, weights: np.ndarray) -> np.ndarray:
        """StratNet's sparsities (``n x num_sites``) where costs weigh so much (``n``)."""
        return self._policy.fronts.ask(self._policy.fronts.joined(weights, [wish]))

    def _fit(self, levels: np.ndarray, limits: dict[Bound, float]) -> np.ndarray:
        return (self._space.total(levels) <= limits["params"]) & (self._timed.total(levels) <= limits["latency"])

    def _measured(self, limits: dict[Bound, float]) -> np.ndarray:
        measured = self._policy.measured_levels
        return measured[self._fit(measured, limits)]

    def _weight(self, wish: Wish, limits: dict[Bound, float]) -> float:
        """The weight of costs at which StratNet's own answers come down to the limits; or what was asked, if more."""
        budget = np.array([limits["params"]])
        return max(
            float(self._policy.fronts.cost_weight(budget, wish.shares, wish.of_costs)[0]),
            self._weight_in_time(limits["latency"], wish),
            wish.cost_weight or 0.0,
        )

    def _weight_in_time(self, nanoseconds: float, wish: Wish) -> float:
        weights = np.linspace(0.002, 0.998, 64)
        taken = np.minimum.accumulate(self._timed.total(self._space.snap(self._ask(wish, weights))))
        return float(np.interp(nanoseconds, taken[::-1], weights[::-1]))

    def _pick(self, wish: Wish, weight: float, preference: np.ndarray, levels: np.ndarray, origins: list[str]) -> Found:
        """The best of some strategies; of equals the first. Costs weigh ``weight``, where they weigh at all."""
        prospects = self._policy.prospects(levels, self._bytes)
        qualities = np.array([prospect.objectives[len(self._policy.costs) :] for prospect in prospects])
        costs = self._policy.scale.cost(torch.as_tensor(self._costs(levels))).numpy()
        asked = np.array([[weight * share for share in wish.of_costs] + [(1 - weight) * s for s in wish.shares]])
        weighs = np.array([wish.cost_weight is not None])
        scores = serving_scores(asked, np.column_stack([costs, qualities])[None], weighs, len(self._costs))[0]
        best = int(np.argmax(scores <= scores.min() + 1e-9))
        return Found(levels[best], prospects[best], origins[best], float(scores[best]), weight, preference)

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

    def _repair(self, wish: Wish, found: Found, damage: np.ndarray, limits: dict[Bound, float]) -> Found:
        """Exchanges levels of two sites as long as the surrogate likes the result better."""
        room = {b: limit - self._timed.fixed[b] for b, limit in limits.items()}
        for _ in range(EXCHANGES):
            tried = exchanges(self._timed, self._space, found.levels, damage, room)
            if not len(tried):
                break
            best = self._pick(wish, found.weight, found.preference, tried, ["repaired"] * len(tried))
            if best.score >= found.score - 1e-9:
                break
            found = best
        return found


def _near(weight: float) -> np.ndarray:
    """A weight, and those around it that StratNet is asked at as well."""
    return np.array([weight, *np.clip(weight * np.array(NEAR), 0.002, 0.998)])


def _keeps(wish: Wish, found: Found) -> bool:
    return not broken_bound(wish, found.prospect.mean, found.prospect.domains)
