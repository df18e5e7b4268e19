"""Sharing out milliseconds, and parameters with them, where damages add up: a knapsack with two bounds."""

from __future__ import annotations

import numpy as np

from unicuco.space import SearchSpace
from unicuco.timed import Bound, Timed

MIXES = (1.0, 0.8, 0.5, 0.2, 0.0)
"""Weights of latency against parameters in the knapsack's price, where both are bounded."""
STEPS = 40
"""Bisections of a knapsack's multiplier."""
JUDGED = 24
"""Exchanges of levels that are looked at more closely."""


def allocate_within(timed: Timed, damage: np.ndarray, limits: dict[Bound, float]) -> np.ndarray:
    """Strategies within the limits that lose least, one per mix of prices (``n x num_sites``).

    Bisection on the multiplier of the price, then levels are given back while one fits.
    """
    costs, sites = timed.costs, np.arange(len(damage))
    room = {b: limit - timed.fixed[b] for b, limit in limits.items()}
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
    return np.array([_fill(timed, row, damage, room) for row in found[fits(found)]]).reshape(-1, len(damage))


def _fill(timed: Timed, levels: np.ndarray, damage: np.ndarray, room: dict[Bound, float]) -> np.ndarray:
    """Gives levels back, most damage for the dearest of its prices first, while one fits."""
    costs, sites, levels = timed.costs, np.arange(len(damage)), levels.copy()
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


def exchanges(
    timed: Timed, space: SearchSpace, levels: np.ndarray, damage: np.ndarray, room: dict[Bound, float]
) -> np.ndarray:
    """The most promising strategies within the limits in which one site gives levels and another one gets some."""
    costs, sites = timed.costs, np.arange(len(damage))
    last = space.num_levels - 1
    reach = [(s, levels[s] + step) for s in sites for step in (-3, -2, -1, 1, 2, 3) if 0 <= levels[s] + step <= last[s]]
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
