"""SeerNet: per request, gradient ascent on a surrogate under the budget ("SeerNet", arXiv 2304.06393).

Its predictor is an MLP trained on thousands of strategies; a Gaussian process is what as few as here can carry.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unicuco.baselines.measured import Measured, random_strategies, starts
from unicuco.baselines.oracle import BudgetSpentError, Oracle
from unicuco.objectives import site_shares
from unicuco.space import SearchSpace, budgets_of
from unicuco.surrogate import Surrogate, SurrogateConfig


class SeerNetConfig(BaseModel):
    """How far and how often the surrogate is followed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    design_share: float = Field(default=1 / 3, gt=0, le=1)
    """Share of the budget for the first design."""
    rounds: int = Field(default=25, ge=1)
    """At most so many fits; a round measures one strategy at least."""
    starts: int = Field(default=8, ge=2)
    """Strategies that the gradient starts from: the best measured, a quarter of them random."""
    steps: int = Field(default=40, ge=1)
    rate: float = Field(default=0.02, gt=0)
    """Adam's step: how far a sparsity moves per step at most, about."""


def seernet(
    oracle: Oracle,
    kept: float,
    evaluations: float,
    rng: np.random.Generator,
    config: SeerNetConfig | None = None,
) -> np.ndarray:
    """The best measured strategy at ``kept``: fit, descend the predicted log KL on the budget's plane, measure, refit.

    Args:
        evaluations: how much of the oracle's budget may be used.

    Returns:
        ``num_sites`` level indices, within ``kept`` and full.
    """
    config = config or SeerNetConfig()
    space, measured = oracle.space, Measured(oracle, evaluations)
    try:
        design = starts(space, kept)
        count = max(round(config.design_share * measured.whole_left) - len(design), 1)
        for levels in [*design, *_design(space, kept, count, rng)]:
            measured.measure(levels)
        batch = -(-measured.whole_left // config.rounds)
        while measured.whole_left:
            for levels in _propose(measured, space, kept, min(batch, measured.whole_left), rng, config):
                measured.measure(levels)
    except BudgetSpentError:
        pass
    if not measured.kl:
        return starts(space, kept)[0]
    return measured.levels[int(np.argmin(measured.kl))]


def _design(space: SearchSpace, kept: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` strategies of the size asked for: a half random, a half uniform ones disturbed more and more."""
    far = random_strategies(space, np.full(count // 2, kept), rng)
    uniform = starts(space, kept)
    base = space.sparsities(np.array([uniform[i % len(uniform)] for i in range(count - len(far))]))
    spread = np.linspace(0.05, 0.35, len(base))[:, None]
    return np.concatenate([far, _project(space, base + spread * rng.standard_normal(base.shape), kept)])


def _propose(
    measured: Measured, space: SearchSpace, kept: float, count: int, rng: np.random.Generator, config: SeerNetConfig
) -> list[np.ndarray]:
    """``count`` strategies: where descents end, best predicted first, every second one the most uncertain promise."""
    levels, kl = np.array(measured.levels), np.array(measured.kl)
    surrogate = Surrogate(space, None, SurrogateConfig(mean="plain")).fit(levels, kl)
    random_count = max(config.starts // 4, 1)
    first = levels[np.argsort(kl, kind="stable")[: config.starts - random_count]]
    first = np.concatenate([first, random_strategies(space, np.full(random_count, kept), rng)])
    ends = _project(space, _descend(surrogate, space, space.sparsities(first), kept, config), kept)
    # Where descents meet or end on known ground, their ends disturbed make up the number.
    near = np.repeat(space.sparsities(ends), 4, axis=0)
    near = _project(space, near + 0.1 * rng.standard_normal(near.shape), kept)
    candidates = np.unique(np.concatenate([ends, near, random_strategies(space, np.full(count, kept), rng)]), axis=0)
    candidates = np.array([row for row in candidates if not measured.knows(row)] or list(candidates))
    with torch.no_grad():
        mean, deviation = (v.numpy() for v in surrogate.predict(torch.as_tensor(space.sparsities(candidates))))
    chosen: list[int] = []
    for i in range(min(count, len(candidates))):
        score = mean - (i % 2) * deviation
        score[chosen] = np.inf
        chosen.append(int(score.argmin()))
    return [candidates[i] for i in chosen]


def _descend(surrogate: Surrogate, space: SearchSpace, x: np.ndarray, kept: float, config: SeerNetConfig) -> np.ndarray:
    """Where Adam gets from each row of ``x`` (``n x num_sites`` sparsities) on the plane of one size."""
    shares = torch.as_tensor(site_shares(space))
    point = torch.as_tensor(x).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([point], lr=config.rate)
    for _ in range(config.steps):
        optimiser.zero_grad()
        surrogate.predict(point)[0].sum().backward()
        assert point.grad is not None
        # Only what the plane leaves of it: else Adam would first of all fight the budget.
        point.grad -= (point.grad @ shares)[:, None] * shares / shares.square().sum()
        optimiser.step()
        with torch.no_grad():
            point.copy_(_onto_plane(point, shares, 1 - kept))
    return point.detach().numpy()


def _onto_plane(x: Tensor, shares: Tensor, removed: float) -> Tensor:
    """``x`` (``n x num_sites``) shifted alike in all sites, within [0, 1], until it removes ``removed``."""
    low, high = torch.full((len(x), 1), -1.0, dtype=x.dtype), torch.ones(len(x), 1, dtype=x.dtype)
    for _ in range(30):
        middle = (low + high) / 2
        enough = ((x + middle).clamp(0, 1) @ shares >= removed)[:, None]
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (x + high).clamp(0, 1)


def _project(space: SearchSpace, x: np.ndarray, kept: float) -> np.ndarray:
    """Level indices of the strategies nearest to ``x`` that fill ``kept``."""
    return space.project(x.clip(0, 1), {"params": budgets_of(space, np.full(len(x), kept))})
