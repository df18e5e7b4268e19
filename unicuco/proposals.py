"""Where candidates come from: a first design without a surrogate, then pools that a surrogate scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unicuco.allocation import allocate
from unicuco.baselines.uniform import ladder, uniform
from unicuco.costs import Costs
from unicuco.objectives import Scale, greedy_hypervolume, join_preferences
from unicuco.qualities import Qualities
from unicuco.space import SearchSpace, budgets_of
from unicuco.stratnet import StratNet, Teachers, balanced_preference, draw_shares

Proposal = tuple[np.ndarray, str]
"""Level indices (``num_sites``) and where they come from."""


FANNED = 4
"""Times as many teachers where there are several qualities or costs."""


def first_design(
    space: SearchSpace,
    damage: np.ndarray | None,
    count: int,
    kept_low: float,
    rng: np.random.Generator,
    disturb: bool = True,
    costs: Costs | None = None,
    whole: bool = False,
) -> list[Proposal]:
    """Strategies to begin with: uniform ladders, then the preparation's allocation with disturbed weights.

    With ``disturb`` false the weights are left alone: margins tell what each is worth without it. Without a damage
    table (the paper's plain form): uniform ladders, then space-filling points. Where sites are kept or dropped, nothing
    is uniform: one strategy stands for it, and single drops come first where there is room for all. Where ``costs``
    are more than size, allocations are by size and by each other cost, in turns. ``whole``: the strategy that prunes
    nothing comes first, where it is worth measuring.
    """
    binary = space.is_binary and damage is not None
    sizes = ladder(space)
    # Zeros are spread over all sites, widths over the MLPs first: the better form of each comes more often.
    rungs = [(k, not space.is_sparse) for k in sizes] + [(k, space.is_sparse) for k in sizes[1::2]]
    rungs = [(k, mlp_only) for k, mlp_only in rungs if k >= kept_low]
    if binary:
        rungs = sorted(rungs)[:1]
    proposals: list[Proposal] = [(np.zeros(space.num_sites, dtype=np.int64), "whole")] if whole else []
    proposals += [(uniform(space, k, mlp_only), "uniform") for k, mlp_only in rungs]
    if binary and count > space.num_sites:
        proposals += [(row, "single") for row in rng.permutation(np.eye(space.num_sites, dtype=np.int64))]
    rest = max(count - len(proposals), 0)
    # Sizes in van der Corput order: any prefix of the design covers the whole range.
    spread_out = kept_low + (0.97 - kept_low) * _van_der_corput(rest)
    if damage is None:
        sparsity = rng.random((rest, space.num_sites))
        wish = sparsity * (1 - spread_out)[:, None] / sparsity.mean(axis=1, keepdims=True)
        levels = space.project(wish.clip(0, 1), {"params": budgets_of(space, spread_out)})
        proposals += [(row, "random") for row in levels]
    elif rest:
        # The first quarter as it is; then weights disturbed more and more, to learn how far each is off.
        untouched = np.arange(rest) < max(rest // 4, int(binary)) if disturb else np.full(rest, True)
        spread = np.where(untouched, 0.0, rng.choice([0.4, 0.8], size=rest))
        weights = np.exp(rng.standard_normal((rest, space.num_sites)) * spread[:, None])
        prices = None
        if costs is not None:
            prices = costs.prices(np.eye(len(costs))[np.arange(rest) % len(costs)])
        levels = allocate(space, damage[None] * weights[:, :, None], budgets_of(space, spread_out), prices=prices)
        proposals += [(row, "prior" if exact else "disturbed") for row, exact in zip(levels, spread == 0, strict=True)]
    return _distinct(proposals, set())[:count]


def improvise(
    space: SearchSpace,
    damage: np.ndarray | None,
    kept_low: float,
    taken: set[bytes],
    rng: np.random.Generator,
    count: int = 1,
) -> list[np.ndarray]:
    """Strategies not in ``taken``, while training keeps the queue empty: known allocations with disturbed weights.

    Up to ``count``, worked out together, and one at least: where chance finds none, all strategies are gone through,
    and there must be one left.
    """
    params = space.tables["params"]
    table = damage if damage is not None else params[:, :1] - params
    for _ in range(100):
        weights = np.exp(0.5 * rng.standard_normal((count, space.num_sites, 1)))
        budgets = budgets_of(space, rng.uniform(kept_low, 0.97, count))
        found = {strategy_key(levels): levels for levels in allocate(space, table * weights, budgets)}
        fresh = [levels for key, levels in found.items() if key not in taken]
        if fresh:
            return fresh
    start = rng.integers(0, space.num_levels)
    return [next(levels for levels in _counting_up(start, space.num_levels) if strategy_key(levels) not in taken)]


def _counting_up(start: np.ndarray, num_levels: np.ndarray) -> Iterator[np.ndarray]:
    """Every strategy once, from ``start`` on, like an odometer with ``num_levels`` digits per wheel."""
    levels = np.array(start)
    for _ in range(math.prod(int(n) for n in num_levels)):
        yield levels.copy()
        for site in range(len(levels)):
            levels[site] = (levels[site] + 1) % num_levels[site]
            if levels[site]:
                break


def _van_der_corput(count: int) -> np.ndarray:
    values = np.zeros(count)
    for i in range(count):
        n, denominator = i + 1, 1.0
        while n:
            denominator *= 2
            values[i] += (n & 1) / denominator
            n >>= 1
    return values


@dataclass(frozen=True)
class Pool:
    """Scored proposals: ``levels`` (``n x num_sites``), who made each, costs and log KLs (``n x num_qualities``)."""

    levels: np.ndarray
    origins: list[str]
    costs: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def make_pool(
    costs: Costs,
    qualities: Qualities,
    net: StratNet,
    scale: Scale,
    taken: set[bytes],
    generator: torch.Generator,
    size: int = 48,
    more: Sequence[Proposal] = (),
) -> Pool:
    """Distinct proposals not in ``taken``: StratNet's answers over the simplex, and allocations under drawn weights.

    With several qualities or costs each of them is for shares drawn at random, and there are as many times more.

    Args:
        more: proposals from elsewhere, to be judged with them.
    """
    space, kept_low = costs.space, scale.kept_low
    size *= len(qualities) * len(costs)
    weight = torch.linspace(0.01, 0.99, size, dtype=torch.float64)
    shares = draw_shares(size, generator, len(qualities))
    of_costs = draw_shares(size, generator, len(costs))
    with torch.no_grad():
        wishes = net(join_preferences(weight, of_costs, shares)).numpy()
    proposals: list[Proposal] = [(row, "stratnet") for row in space.snap(wishes)]
    if qualities.has_tables:
        sizes = kept_low + (0.97 - kept_low) * torch.rand(size, generator=generator, dtype=torch.float64).numpy()
        asked, prices = (sizes, shares.numpy(), scale.ranges), costs.prices(of_costs.numpy())
        proposals += [(row, "allocation") for row in qualities.allocate(*asked, prices=prices)]
        proposals += [(row, "thompson") for row in qualities.allocate(*asked, generator, prices)]
        # StratNet's answers with one swap: what a smooth network cannot step over.
        base = np.array([row for row, origin in proposals])
        proposals += [(row, "swap") for row in _swapped(space, base, generator)]
    proposals = _distinct([*proposals, *more], taken)
    if not proposals:
        nothing = np.empty((0, len(qualities)))
        none = np.empty((0, space.num_sites), dtype=np.int64)
        return Pool(none, [], np.empty((0, len(costs))), nothing, nothing)
    levels = np.array([row for row, _ in proposals])
    with torch.no_grad():
        mean, deviation = qualities.predict(torch.as_tensor(space.sparsities(levels)))
    origins = [origin for _, origin in proposals]
    return Pool(levels, origins, costs(levels), mean.numpy(), deviation.numpy())


def pick(pool: Pool, known: np.ndarray, scale: Scale, optimism: float, count: int) -> list[int]:
    """Indices into ``pool`` by greedy hypervolume of (costs, μ − βσ of every quality).

    The reference is the dense model's costs and, for each quality, the log KL that the smallest size promises where
    another domain alone counts (``Scale.log_kl_high``): the corner that no useful strategy lies beyond.

    Args:
        known: ``m x num_objectives`` (costs, log KLs) of what was measured, and of pending points as predicted.
    """
    optimistic = np.column_stack([pool.costs, pool.mean - optimism * pool.deviation])
    k = optimistic.shape[1] - scale.num_qualities

    def clipped(points: np.ndarray) -> np.ndarray:
        # Below the scale's low end, log KL runs to minus infinity as kept goes to 1 and would swallow the volume.
        return np.column_stack([points[:, :k], np.maximum(points[:, k:], scale.log_kl_low)])

    reference = (*[1.0] * k, *scale.log_kl_high)
    return greedy_hypervolume(clipped(optimistic), clipped(known), reference, count)


def make_teachers(
    costs: Costs, qualities: Qualities, scale: Scale, generator: torch.Generator, count: int = 96
) -> Teachers | None:
    """Allocations under the surrogates' weights for ``count`` sizes, each with the preference that it answers.

    With several qualities or costs ``FANNED`` times as many: half of them for each of them alone and for all alike, in
    turns, half for shares drawn at random, so that the corners of the front are taught as well as its middle.
    """
    if not qualities.has_tables:
        return None
    if len(qualities) > 1 or len(costs) > 1:
        count *= FANNED
    shares = _fanned(count, generator, len(qualities), 1)
    of_costs = _fanned(count, generator, len(costs), 1 + len(qualities))
    sizes = np.linspace(scale.kept_low, 0.99, count)
    levels = qualities.allocate(sizes, shares.numpy(), scale.ranges, prices=costs.prices(of_costs.numpy()))
    with torch.no_grad():
        strategy = torch.as_tensor(costs.space.sparsities(levels))
        mean, _ = qualities.predict(strategy)
        values = scale.values(torch.as_tensor(costs(levels)), mean)
        return Teachers(balanced_preference(values, of_costs, shares), strategy)


def _fanned(count: int, generator: torch.Generator, parts: int, times: int) -> Tensor:
    """Shares (``count x parts``): every other one of a part alone or all alike, each ``times`` in a row."""
    shares = draw_shares(count, generator, parts)
    if parts > 1:
        alike = torch.full((1, parts), 1 / parts, dtype=torch.float64)
        fixed = torch.cat([torch.eye(parts, dtype=torch.float64), alike])
        shares[::2] = fixed.repeat_interleave(times, dim=0).repeat(count, 1)[: len(shares[::2])]
    return shares


def _swapped(space: SearchSpace, levels: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Each row with one site a level down and another as far up as that pays for (``n x num_sites``)."""
    rows = np.arange(len(levels))
    sites = torch.randint(space.num_sites, (2, len(levels)), generator=generator).numpy()
    swapped = levels.copy()
    swapped[rows, sites[0]] = np.minimum(swapped[rows, sites[0]] + 1, space.num_levels[sites[0]] - 1)
    swapped[rows, sites[1]] = np.maximum(swapped[rows, sites[1]] - 1, 0)
    return swapped


def _distinct(proposals: list[Proposal], taken: set[bytes]) -> list[Proposal]:
    seen = set(taken)
    kept: list[Proposal] = []
    for levels, origin in proposals:
        key = strategy_key(levels)
        if key not in seen:
            seen.add(key)
            kept.append((levels, origin))
    return kept


def strategy_key(levels: np.ndarray) -> bytes:
    """A strategy as a set or dictionary key."""
    return np.asarray(levels, dtype=np.int32).tobytes()
