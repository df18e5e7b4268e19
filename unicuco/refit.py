"""One training: from all evaluations to surrogates, a StratNet trained on them, and the next proposals."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unicuco.costs import Costs
from unicuco.evaluations import Candidate, Evaluation
from unicuco.neighbours import neighbours
from unicuco.objectives import Scale
from unicuco.proposals import Proposal, make_pool, make_teachers, pick
from unicuco.qualities import Qualities
from unicuco.slopes import read_slopes
from unicuco.space import SearchSpace
from unicuco.stratnet import StratNet, StratNetConfig, train_stratnet
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

Queue = deque[tuple[Proposal, float, float]]
"""Proposals with the surrogate's mean and deviation of their mean log KL; nan where there was no surrogate."""


@dataclass(frozen=True)
class Fitted:
    """Surrogates of a log, and the scale of the objectives that they say.

    Attributes:
        surrogate: of the mean KL over all domains, which answers and reports always state.
        qualities: what StratNet is trained on: that surrogate, or one per domain.
        costs: and these.
    """

    surrogate: Surrogate
    qualities: Qualities
    scale: Scale
    costs: Costs


@dataclass(frozen=True)
class Refit(Fitted):
    """What one training leaves: the parts of a policy, and StratNet's last loss."""

    net: StratNet
    loss: float


def refit(
    costs: Costs,
    damage: np.ndarray | None,
    surrogate_config: SurrogateConfig,
    net_config: StratNetConfig,
    net: StratNet,
    kept_low: float,
    done: Sequence[Evaluation],
    generator: torch.Generator,
    domains: tuple[str, ...] = (),
) -> Refit:
    """Fits the surrogates to ``done`` and trains a copy of ``net`` on them; proposes nothing yet.

    Args:
        domains: those that are objectives of their own; (): the mean KL is the one quality.
    """
    fitted = fit(costs, damage, surrogate_config, kept_low, done, domains)
    teachers = make_teachers(costs, fitted.qualities, fitted.scale, generator)
    net, loss = train_stratnet(net, fitted.qualities, costs, fitted.scale, teachers, net_config, generator)
    return Refit(**vars(fitted), net=net, loss=loss)


def fit(
    costs: Costs,
    damage: np.ndarray | None,
    config: SurrogateConfig,
    kept_low: float,
    done: Sequence[Evaluation],
    domains: tuple[str, ...] = (),
) -> Fitted:
    """Fits the surrogates to ``done``; see ``refit``."""
    space = costs.space
    levels = np.array([e.levels_array() for e in done])  # one by one: converting them in one call holds the GIL
    kl = np.array([e.kl for e in done])
    usable = _usable(space, levels, kl, config.max_points)
    slopes = read_slopes(space, done) if config.mean == "damage" else None
    surrogate = Surrogate(space, damage, config).fit(levels[usable], kl[usable], slopes)
    qualities = Qualities.of_mean(surrogate)
    if domains:
        own = np.array([i for i in usable if done[i].domains == domains and np.isfinite(done[i].domain_kl).all()])
        own_kl = np.array([done[i].domain_kl for i in own])
        qualities = Qualities.of_domains(space, damage, config, domains, levels[own], own_kl)
    scale = _scale(costs, qualities, kept_low, qualities.measured([done[i] for i in usable]))
    return Fitted(surrogate, qualities, scale, costs)


def propose(
    fitted: Refit,
    optimism: float,
    count: int,
    done: Sequence[Evaluation],
    pending: Sequence[Candidate],
    taken: set[bytes],
    generator: torch.Generator,
) -> Queue:
    """The ``count`` best of a pool of new strategies, given what was measured and what is under way."""
    costs, space = fitted.costs, fitted.costs.space
    near = neighbours(space, fitted.surrogate, done, fitted.scale.kept_low, optimism, taken, generator)
    pool = make_pool(costs, fitted.qualities, fitted.net, fitted.scale, taken, generator, more=near)
    levels = np.array([e.levels_array() for e in done])
    known = np.column_stack([costs(levels), fitted.qualities.measured(done)])
    if pending:
        waiting = np.array([c.levels for c in pending])
        with torch.no_grad():
            mean, _ = fitted.qualities.predict(torch.as_tensor(space.sparsities(waiting)))
        known = np.vstack([known, np.column_stack([costs(waiting), mean.numpy()])])
    chosen = pick(pool, known, fitted.scale, optimism, count)
    if not chosen:
        return deque()
    with torch.no_grad():
        means, deviations = fitted.surrogate.predict(torch.as_tensor(space.sparsities(pool.levels[chosen])))
    promised = zip(chosen, means.tolist(), deviations.tolist(), strict=True)
    return deque(((pool.levels[i], pool.origins[i]), mean, deviation) for i, mean, deviation in promised)


def _usable(space: SearchSpace, levels: np.ndarray, kl: np.ndarray, most: int) -> np.ndarray:
    """Indices that the surrogate sees: all but the dense strategy, bounded in number."""
    indices = np.flatnonzero(np.isfinite(kl) & (levels.sum(axis=1) > 0))
    if len(indices) <= most:
        return indices
    # The best quality per size says where the front is; the newest say what was asked last.
    rank = np.argsort(np.log(kl[indices] + NOISE_FLOOR) + 4 * space.kept(levels[indices]))
    chosen = set(indices[rank[: most // 2]]) | set(indices[-most // 2 :])
    return np.array(sorted(chosen))


def _scale(costs: Costs, qualities: Qualities, kept_low: float, log_kl: np.ndarray) -> Scale:
    """Where 0 and 1 of all objectives lie: what the surrogates promise at the ends of the sizes.

    For each quality, 0 is its best at the largest size and 1 its worst at the smallest among the strategies that serve
    one quality alone and are chosen for one cost alone: the corners of the front.

    Args:
        log_kl: measured, ``n x num_qualities``; for the plain form, which promises nothing of that kind.
    """
    if qualities.has_tables:
        count = len(qualities) * len(costs)
        sizes = np.array([0.97] * count + [kept_low] * count)
        shares = np.tile(np.eye(len(qualities)), (2 * len(costs), 1))
        prices = costs.prices(np.tile(np.repeat(np.eye(len(costs)), len(qualities), axis=0), (2, 1)))
        ends = qualities.allocate(sizes, shares, np.ones(len(qualities)), prices=prices)
        with torch.no_grad():
            mean, _ = qualities.predict(torch.as_tensor(costs.space.sparsities(ends)))
        low, high = mean[:count].numpy().min(axis=0), mean[count:].numpy().max(axis=0)
    else:
        low, high = np.nanmin(log_kl, axis=0), np.nanmax(log_kl, axis=0)
    return Scale(kept_low, tuple(low.tolist()), tuple(np.maximum(high, low + 0.1).tolist()))
