"""Multi-objective Bayesian optimisation with qLogNEHVI over sparsities in [0, 1]^num_sites.

Daulton et al. 2021 (qNEHVI, arXiv 2105.08195) in the logarithmic form of Ament et al. 2023 (arXiv 2310.20708), as in
BoTorch. kept is known exactly, so only log KL has a Gaussian process.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import MCMultiOutputObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.mlls import ExactMarginalLogLikelihood
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unicuco.baselines.measured import Measured, starts
from unicuco.baselines.oracle import BudgetSpentError, Oracle
from unicuco.objectives import front, site_shares
from unicuco.space import SearchSpace, budgets_of
from unicuco.surrogate import NOISE_FLOOR

MARGIN = 0.02
"""How far above the largest requested size hypervolume still counts."""


class BayesianConfig(BaseModel):
    """Effort per round, chosen so that one of 60 sites and 300 evaluations takes seconds on one thread."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int | None = Field(default=None, ge=1)
    """Evaluations per round; None: 4 to 8, so that there are about 30 rounds."""
    fit_steps: int = Field(default=50, ge=1)
    samples: int = Field(default=32, ge=1)
    """Monte-Carlo samples of the acquisition function."""
    pool: int = Field(default=192, ge=1)
    """Strategies tried before the best of them are optimised by gradient."""
    restarts: int = Field(default=2, ge=1)
    steps: int = Field(default=15, ge=1)


def bayesian(
    oracle: Oracle,
    sizes: Sequence[float],
    evaluations: float,
    rng: np.random.Generator,
    config: BayesianConfig | None = None,
) -> np.ndarray:
    """Strategies for all sizes from one run of batched Bayesian optimisation.

    Begins with both uniform forms at every size and Sobol points scaled to sizes in between (a fifth of the budget, at
    least as many as the uniform ones), then proposes batches by qLogNEHVI, snapped to the nearest levels.

    Args:
        sizes: shares of the blocks' parameters, each a bound.
        evaluations: how much of the oracle's budget may be used.

    Returns:
        ``len(sizes) x num_sites`` level indices: per size the best measured within it, filled up evenly.
    """
    config = config or BayesianConfig()
    space, kept = oracle.space, np.asarray(sizes, dtype=np.float64)
    measured = Measured(oracle, evaluations)
    try:
        design = [levels for size in kept for levels in starts(space, float(size))]
        spread = np.linspace(kept.min(), kept.max(), max(measured.whole_left // 5 - len(design), len(design)))
        for levels in [*design, *_sobol(space, spread, rng)]:
            measured.measure(levels)
        reference = _reference(measured, kept, len(design))
        batch = config.batch or int(np.clip(-(-measured.whole_left // 30), 4, 8))
        while measured.whole_left:
            proposals = _propose(measured, space, kept, reference, min(batch, measured.whole_left), rng, config)
            for levels in proposals:
                measured.measure(levels)
    except BudgetSpentError:
        pass
    return measured.answers(kept)


def _sobol(space: SearchSpace, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One space-filling strategy per size (``len(kept) x num_sites`` level indices), sizes in random order."""
    engine = torch.quasirandom.SobolEngine(space.num_sites, scramble=True, seed=int(rng.integers(2**31)))
    points = engine.draw(len(kept), dtype=torch.float64).numpy()
    kept = rng.permutation(kept)
    wish = points * (1 - kept)[:, None] / points.mean(axis=1, keepdims=True)
    return space.project(wish.clip(0, 1), {"params": budgets_of(space, kept)})


def _reference(measured: Measured, kept: np.ndarray, uniform_count: int) -> Tensor:
    """The hypervolume's corner: a little above the largest size, at the worst KL of uniform pruning."""
    worst = np.log(max(max(measured.kl[:uniform_count]), 0.0) + NOISE_FLOOR)
    return torch.tensor([-min(kept.max() + MARGIN, 1.0), -worst], dtype=torch.float64)


def _propose(
    measured: Measured,
    space: SearchSpace,
    kept: np.ndarray,
    reference: Tensor,
    count: int,
    rng: np.random.Generator,
    config: BayesianConfig,
) -> list[np.ndarray]:
    """``count`` strategies that were not measured, one after another, each knowing those before as pending."""
    levels = np.array(measured.levels)
    x = torch.as_tensor(space.sparsities(levels))
    log_kl = np.log(np.maximum(measured.kl, 0.0) + NOISE_FLOOR)
    pool = _pool(space, levels, log_kl, kept, rng, config.pool)
    # BoTorch draws from torch's own generator when it prunes the baseline: seeded here, and given back as it was.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        warnings.simplefilter("ignore")  # botorch warns of every limit on its optimisers, and ours are tight
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            _model(x, torch.as_tensor(-log_kl), config.fit_steps),
            ref_point=reference,
            X_baseline=x,
            sampler=SobolQMCNormalSampler(torch.Size([config.samples]), seed=int(rng.integers(2**31))),
            objective=SizeAndQuality(space),
            prune_baseline=True,
            cache_root=True,
        )
        proposals: list[np.ndarray] = []
        for _ in range(count):
            if proposals:
                acquisition.set_X_pending(torch.as_tensor(space.sparsities(np.array(proposals))))
            taken = {row.tobytes() for row in proposals}
            proposals.append(_best(acquisition, space, pool, measured, taken, config))
    return proposals


class SizeAndQuality(MCMultiOutputObjective):
    """(−kept, −log KL), both maximised, from the Gaussian process of −log KL and the strategies themselves.

    As an objective instead of a second, deterministic model: the Gaussian process stays the only model, and BoTorch
    then caches its root over what was measured.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._shares = torch.as_tensor(site_shares(space))

    def forward(self, samples: Tensor, X: Tensor | None = None) -> Tensor:
        """Objectives (``samples x n x q x 2``) of draws (``samples x n x q x 1``) at ``X`` (``n x q x num_sites``)."""
        assert X is not None
        size = (X @ self._shares - 1)[..., None].expand_as(samples)
        return torch.cat([size, samples], dim=-1)


def _model(x: Tensor, y: Tensor, fit_steps: int) -> SingleTaskGP:
    """BoTorch's default Gaussian process of ``y`` (``n``) over sparsities ``x`` (``n x num_sites``)."""
    model = SingleTaskGP(x, y[:, None])
    fit_gpytorch_mll(
        ExactMarginalLogLikelihood(model.likelihood, model), optimizer_kwargs={"options": {"maxiter": fit_steps}}
    )
    return model


def _pool(
    space: SearchSpace, levels: np.ndarray, log_kl: np.ndarray, kept: np.ndarray, rng: np.random.Generator, count: int
) -> Tensor:
    """Where to look first (``count x 1 x num_sites`` sparsities): the measured front, disturbed, moved in size.

    Uniform draws from [0, 1]^num_sites would nearly all lie at kept 0.5, far behind the front.
    """
    best = levels[front(np.column_stack([space.kept(levels), log_kl]))]
    inside = best[(space.kept(best) <= kept.max() + MARGIN) & (space.kept(best) >= kept.min() - MARGIN)]
    base = space.sparsities(rng.choice(inside if len(inside) else best, count))
    # Few sites much or all sites a little.
    share = rng.choice([0.05, 0.2, 1.0], (count, 1))
    noise = rng.normal(0, 0.25, base.shape) * (rng.random(base.shape) < np.maximum(share, 1.5 / space.num_sites))
    disturbed = (base + noise * np.where(share == 1.0, 0.3, 1.0)).clip(0, 1)
    # Half keep the size of their base, half take a random one: the front has gaps.
    sizes = np.where(rng.random(count) < 0.5, 1 - base @ site_shares(space), rng.uniform(kept.min(), kept.max(), count))
    moved = space.project(disturbed, {"params": budgets_of(space, sizes.clip(0, 1) + 1e-12)})
    return torch.as_tensor(space.sparsities(moved))[:, None]


def _best(
    acquisition: qLogNoisyExpectedHypervolumeImprovement,
    space: SearchSpace,
    pool: Tensor,
    measured: Measured,
    taken: set[bytes],
    config: BayesianConfig,
) -> np.ndarray:
    """The strategy (``num_sites`` level indices) of largest acquisition value that is neither measured nor taken."""
    with torch.no_grad():
        order = acquisition(pool).argsort(descending=True, stable=True)
    # Strategies smaller than anybody asks for are left out: far from data the Gaussian process falls back to its mean,
    # which promises them the KL of middling sizes, and the search would go nowhere else.
    shares = torch.as_tensor(site_shares(space))
    most = float((pool @ shares).max())
    found, _ = optimize_acqf(
        acquisition,
        bounds=torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, space.num_sites),
        q=1,
        num_restarts=min(config.restarts, len(pool)),
        batch_initial_conditions=pool[order[: config.restarts]],
        inequality_constraints=[(torch.arange(space.num_sites), -shares, -most)],
        options={"maxiter": config.steps},
        retry_on_optimization_warning=False,
    )
    ranked = space.snap(torch.cat([found, pool[order, 0]]).clamp(0, 1).numpy())
    for levels in ranked:
        if not measured.knows(levels) and levels.tobytes() not in taken:
            return levels
    return ranked[0]  # a small space is exhausted; its budget is spent on what is known
