"""Where candidates come from: a first design without a surrogate, then pools that a surrogate scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unicuco.allocation import allocate
from unicuco.baselines.uniform import LADDER, uniform
from unicuco.objectives import Scale, greedy_hypervolume
from unicuco.space import SearchSpace, budgets_of
from unicuco.stratnet import StratNet, Teachers, balanced_preference
from unicuco.surrogate import Surrogate

Proposal = tuple[np.ndarray, str]
"""Level indices (``num_sites``) and where they come from."""


def first_design(
    space: SearchSpace,
    damage: np.ndarray | None,
    count: int,
    kept_low: float,
    rng: np.random.Generator,
    disturb: bool = True,
) -> list[Proposal]:
    """Strategies to begin with: uniform ladders, then the preparation's allocation with disturbed weights.

    With ``disturb`` false the weights are left alone: margins tell what each is worth without it. Without a damage
    table (the paper's plain form): uniform ladders, then space-filling points. Where sites are kept or dropped, nothing
    is uniform: one strategy stands for it, and single drops come first where there is room for all.
    """
    binary = space.is_binary and damage is not None
    ladder = [(k, True) for k in LADDER] + [(k, False) for k in LADDER[1::2]]
    ladder = [(k, mlp_only) for k, mlp_only in ladder if k >= kept_low]
    if binary:
        ladder = sorted(ladder)[:1]
    proposals: list[Proposal] = [(uniform(space, k, mlp_only), "uniform") for k, mlp_only in ladder]
    if binary and count > space.num_sites:
        proposals += [(row, "single") for row in rng.permutation(np.eye(space.num_sites, dtype=np.int64))]
    rest = max(count - len(proposals), 0)
    # Sizes in van der Corput order: any prefix of the design covers the whole range.
    sizes = kept_low + (0.97 - kept_low) * _van_der_corput(rest)
    if damage is None:
        sparsity = rng.random((rest, space.num_sites))
        wish = sparsity * (1 - sizes)[:, None] / sparsity.mean(axis=1, keepdims=True)
        levels = space.project(wish.clip(0, 1), {"params": budgets_of(space, sizes)})
        proposals += [(row, "random") for row in levels]
    elif rest:
        # The first quarter as it is; then weights disturbed more and more, to learn how far each is off.
        untouched = np.arange(rest) < max(rest // 4, int(binary)) if disturb else np.full(rest, True)
        spread = np.where(untouched, 0.0, rng.choice([0.4, 0.8], size=rest))
        weights = np.exp(rng.standard_normal((rest, space.num_sites)) * spread[:, None])
        levels = allocate(space, damage[None] * weights[:, :, None], budgets_of(space, sizes))
        proposals += [(row, "prior" if exact else "disturbed") for row, exact in zip(levels, spread == 0, strict=True)]
    return _distinct(proposals, set())[:count]


def improvise(
    space: SearchSpace, damage: np.ndarray | None, kept_low: float, taken: set[bytes], rng: np.random.Generator
) -> np.ndarray:
    """A strategy not in ``taken``, while training keeps the queue empty: a known allocation with disturbed weights.

    There must be one left: where chance finds none, all strategies are gone through.
    """
    params = space.tables["params"]
    table = damage if damage is not None else params[:, :1] - params
    for _ in range(100):
        weights = np.exp(0.5 * rng.standard_normal((space.num_sites, 1)))
        budget = budgets_of(space, np.array([rng.uniform(kept_low, 0.97)]))
        levels = allocate(space, table * weights, budget)[0]
        if strategy_key(levels) not in taken:
            return levels
    start = rng.integers(0, space.num_levels)
    return next(levels for levels in _counting_up(start, space.num_levels) if strategy_key(levels) not in taken)


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
    """Scored proposals: ``levels`` (``n x num_sites``), who made each, and log KL's mean and deviation (``n``)."""

    levels: np.ndarray
    origins: list[str]
    kept: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def make_pool(
    space: SearchSpace,
    surrogate: Surrogate,
    net: StratNet,
    kept_low: float,
    taken: set[bytes],
    generator: torch.Generator,
    size: int = 48,
    more: Sequence[Proposal] = (),
) -> Pool:
    """Distinct proposals not in ``taken``: StratNet's answers over the simplex, and allocations under drawn weights.

    Args:
        more: proposals from elsewhere, to be judged with them.
    """
    share = torch.linspace(0.01, 0.99, size, dtype=torch.float64)
    with torch.no_grad():
        wishes = net(torch.stack([share, 1 - share], dim=-1)).numpy()
    proposals: list[Proposal] = [(row, "stratnet") for row in space.snap(wishes)]
    if surrogate.damage_model is not None:
        sizes = kept_low + (0.97 - kept_low) * torch.rand(size, generator=generator, dtype=torch.float64).numpy()
        proposals += [
            (row, origin)
            for origin, tables in (
                ("allocation", surrogate.tables(sizes)),
                ("thompson", surrogate.sample_tables(sizes, generator)),
            )
            for row in allocate(space, tables, budgets_of(space, sizes))
        ]
        # StratNet's answers with one swap: what a smooth network cannot step over.
        base = np.array([row for row, origin in proposals])
        proposals += [(row, "swap") for row in _swapped(space, base, generator)]
    proposals = _distinct([*proposals, *more], taken)
    if not proposals:
        return Pool(np.empty((0, space.num_sites), dtype=np.int64), [], *(np.empty(0) for _ in range(3)))
    levels = np.array([row for row, _ in proposals])
    with torch.no_grad():
        mean, deviation = surrogate.predict(torch.as_tensor(space.sparsities(levels)))
    origins = [origin for _, origin in proposals]
    return Pool(levels, origins, space.kept(levels), mean.numpy(), deviation.numpy())


def pick(pool: Pool, known: np.ndarray, scale: Scale, optimism: float, count: int) -> list[int]:
    """Indices into ``pool`` by greedy hypervolume of (kept, μ − βσ).

    Args:
        known: ``m x 2`` (kept, log KL) of what was measured, and of pending points as predicted.
    """

    def clipped(points: np.ndarray) -> np.ndarray:
        # Below the scale's low end, log KL runs to minus infinity as kept goes to 1 and would swallow the volume.
        return np.column_stack([points[:, 0], np.maximum(points[:, 1], scale.log_kl_low)])

    optimistic = np.column_stack([pool.kept, pool.mean - optimism * pool.deviation])
    reference = (1.0, scale.log_kl_high)
    return greedy_hypervolume(clipped(optimistic), clipped(known), reference, count)


def make_teachers(space: SearchSpace, surrogate: Surrogate, scale: Scale, count: int = 96) -> Teachers | None:
    """Allocations under the surrogate's weights for ``count`` sizes, each with the preference that it answers."""
    if surrogate.damage_model is None:
        return None
    sizes = np.linspace(scale.kept_low, 0.99, count)
    levels = allocate(space, surrogate.tables(sizes), budgets_of(space, sizes))
    with torch.no_grad():
        strategy = torch.as_tensor(space.sparsities(levels))
        mean, _ = surrogate.predict(strategy)
        kept = torch.as_tensor(space.kept(levels))
        return Teachers(balanced_preference(scale.size(kept), scale.quality(mean)), strategy)


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
