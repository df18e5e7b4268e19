"""One training: from all evaluations to a surrogate, a StratNet trained on it, and the next proposals."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unicuco.allocation import allocate
from unicuco.evaluations import Candidate, Evaluation
from unicuco.neighbours import neighbours
from unicuco.objectives import Scale, site_shares
from unicuco.proposals import Proposal, make_pool, make_teachers, pick
from unicuco.slopes import read_slopes
from unicuco.space import SearchSpace, budgets_of
from unicuco.stratnet import StratNet, StratNetConfig, train_stratnet
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

Queue = deque[tuple[Proposal, float, float]]
"""Proposals with the surrogate's mean and deviation of their log KL; nan where there was no surrogate."""


@dataclass(frozen=True)
class Refit:
    """What one training leaves: the parts of a policy, StratNet's last loss, and proposals, best first."""

    surrogate: Surrogate
    net: StratNet
    scale: Scale
    loss: float
    queue: Queue


def refit(
    space: SearchSpace,
    damage: np.ndarray | None,
    surrogate_config: SurrogateConfig,
    net_config: StratNetConfig,
    net: StratNet,
    kept_low: float,
    done: Sequence[Evaluation],
    generator: torch.Generator,
) -> Refit:
    """Fits the surrogate to ``done`` and trains a copy of ``net`` on it; proposes nothing yet."""
    levels = np.array([e.levels_array() for e in done])  # one by one: converting them in one call holds the GIL
    kl = np.array([e.kl for e in done])
    usable = _usable(space, levels, kl, surrogate_config.max_points)
    slopes = read_slopes(space, done) if surrogate_config.mean == "damage" else None
    surrogate = Surrogate(space, damage, surrogate_config).fit(levels[usable], kl[usable], slopes)
    scale = _scale(space, surrogate, kept_low, kl[usable])
    teachers = make_teachers(space, surrogate, scale)
    shares = torch.as_tensor(site_shares(space))
    net, loss = train_stratnet(net, surrogate, shares, scale, teachers, net_config, generator)
    return Refit(surrogate, net, scale, loss, deque())


def propose(
    space: SearchSpace,
    fitted: Refit,
    kept_low: float,
    optimism: float,
    count: int,
    done: Sequence[Evaluation],
    pending: Sequence[Candidate],
    taken: set[bytes],
    generator: torch.Generator,
) -> Queue:
    """The ``count`` best of a pool of new strategies, given what was measured and what is under way."""
    near = neighbours(space, fitted.surrogate, done, kept_low, optimism, taken, generator)
    pool = make_pool(space, fitted.surrogate, fitted.net, kept_low, taken, generator, more=near)
    levels = np.array([e.levels_array() for e in done])
    kl = np.array([e.kl for e in done])
    known = np.column_stack([space.kept(levels), np.log(kl + NOISE_FLOOR)])
    if pending:
        waiting = np.array([c.levels for c in pending])
        with torch.no_grad():
            mean, _ = fitted.surrogate.predict(torch.as_tensor(space.sparsities(waiting)))
        known = np.vstack([known, np.column_stack([space.kept(waiting), mean.numpy()])])
    chosen = pick(pool, known, fitted.scale, optimism, count)
    return deque(((pool.levels[i], pool.origins[i]), float(pool.mean[i]), float(pool.deviation[i])) for i in chosen)


def _usable(space: SearchSpace, levels: np.ndarray, kl: np.ndarray, most: int) -> np.ndarray:
    """Indices that the surrogate sees: all but the dense strategy, bounded in number."""
    indices = np.flatnonzero(np.isfinite(kl) & (levels.sum(axis=1) > 0))
    if len(indices) <= most:
        return indices
    # The best quality per size says where the front is; the newest say what was asked last.
    rank = np.argsort(np.log(kl[indices] + NOISE_FLOOR) + 4 * space.kept(levels[indices]))
    chosen = set(indices[rank[: most // 2]]) | set(indices[-most // 2 :])
    return np.array(sorted(chosen))


def _scale(space: SearchSpace, surrogate: Surrogate, kept_low: float, kl: np.ndarray) -> Scale:
    """Where 0 and 1 of both objectives lie: what the surrogate promises at the ends of the sizes."""
    if surrogate.damage_model is None:
        logs = np.log(kl + NOISE_FLOOR)
        return Scale(kept_low, float(logs.min()), float(max(logs.max(), logs.min() + 0.1)))
    sizes = np.array([0.97, kept_low])
    ends = allocate(space, surrogate.tables(sizes), budgets_of(space, sizes))
    with torch.no_grad():
        mean, _ = surrogate.predict(torch.as_tensor(space.sparsities(ends)))
    return Scale(kept_low, float(mean[0]), float(max(mean[1], mean[0] + 0.1)))
