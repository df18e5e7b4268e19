"""The surrogate: a Gaussian process of log KL over strategies, with an informed mean or the paper's plain one."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import gpytorch
import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field
from torch import Tensor

from unicuco.damage import DamageMean, DamageModel, ShareKernel
from unicuco.space import SearchSpace

NOISE_FLOOR = 1e-4
"""Added to a KL before its logarithm: differences below it are noise."""


class SurrogateConfig(Config):
    """Which Gaussian process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Literal["damage", "plain"] = "damage"
    """``damage``: additive monotone mean, GP on weights and residual. ``plain``: the paper's GP, BoTorch defaults."""
    relinearise: int = Field(default=2, ge=1)
    """Rounds of: fit hyper-parameters, move the sites' weights to their posterior mean."""
    max_points: int = Field(default=2000, ge=10)
    """More evaluations than this: those with the smallest KL at their size and the newest are kept."""


class Surrogate:
    """A fitted Gaussian process; ``predict`` costs one n x num_points kernel and two products.

    Attributes:
        model: the gpytorch model, float64, on the CPU.
    """

    def __init__(self, space: SearchSpace, damage: np.ndarray | None, config: SurrogateConfig | None = None) -> None:
        self.config = config or SurrogateConfig()
        self.space = space
        self._damage = damage
        self.model: SingleTaskGP | None = None
        self._shift, self._scale = 0.0, 1.0

    def fit(self, levels: np.ndarray, kl: np.ndarray) -> Surrogate:
        """Fits hyper-parameters and weights to evaluations.

        Args:
            levels: ``n x num_sites`` level indices, n >= 2.
            kl: ``n`` KLs in nats per token.
        """
        x = torch.as_tensor(self.space.sparsities(levels))
        y = torch.as_tensor(np.log(np.maximum(kl, 0.0) + NOISE_FLOOR))
        self.model = self._build(x, y)
        rounds = self.config.relinearise if self.config.mean == "damage" else 1
        for _ in range(rounds):
            mll = ExactMarginalLogLikelihood(self.model.likelihood, self.model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # botorch warns of every optimiser restart
                fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 75}})
            self._cache()
            if self.config.mean == "damage":
                self._move_weights()
        self._cache()
        return self

    def _build(self, x: Tensor, y: Tensor) -> SingleTaskGP:
        if self.config.mean == "plain":
            self._shift, self._scale = float(y.mean()), max(float(y.std()), 1e-3)
            return SingleTaskGP(x, ((y - self._shift) / self._scale)[:, None], outcome_transform=None)
        assert self._damage is not None, "the damage mean needs the preparation's damage table"
        shared = DamageModel(self.space, torch.as_tensor(self._damage))
        residual = MaternKernel(nu=2.5, lengthscale_prior=LogNormalPrior(math.log(2.0), 0.7))
        residual.lengthscale = 2.0
        parts = []
        for kernel, scale, spread in ((ShareKernel(shared), 0.3, 0.7), (residual, 0.05, 0.7)):
            # Priors on output scales are on variances, hence twice the spread in logs.
            scaled = ScaleKernel(kernel, outputscale_prior=LogNormalPrior(2 * math.log(scale), 2 * spread))
            scaled.outputscale = scale**2
            parts.append(scaled)
        likelihood = GaussianLikelihood(noise_prior=LogNormalPrior(2 * math.log(0.03), 1.0))
        likelihood.noise = 0.03**2
        return SingleTaskGP(
            x,
            y[:, None],
            likelihood=likelihood,
            mean_module=DamageMean(shared),
            covar_module=parts[0] + parts[1],
            outcome_transform=None,
        ).double()

    @property
    def damage_model(self) -> DamageModel | None:
        """The additive part, or None in the plain form."""
        mean = self.model.mean_module if self.model is not None else None
        return mean.model if isinstance(mean, DamageMean) else None

    @torch.no_grad()
    def _cache(self) -> None:
        model = self.model
        assert model is not None
        model.eval()
        self._x = model.train_inputs[0]
        noise = model.likelihood.noise.detach().squeeze()
        covariance = model.covar_module(self._x).to_dense() + noise * torch.eye(len(self._x), dtype=torch.float64)
        self._factor = torch.linalg.cholesky(covariance)
        gap = model.train_targets - model.mean_module(self._x)
        self._alpha = torch.cholesky_solve(gap[:, None], self._factor)[:, 0]
        self._noise = noise

    @torch.no_grad()
    def _move_weights(self) -> None:
        """Sets the sites' weights to their posterior mean: the next linearisation starts there."""
        shared, model = self.damage_model, self.model
        assert shared is not None and model is not None
        variance = model.covar_module.kernels[0].outputscale
        shared.log_weight.copy_(variance * (shared.shares(self._x).T @ self._alpha))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of log KL on the search windows, differentiable in ``x``.

        Args:
            x: ``n x num_sites`` sparsities, float64.

        Returns:
            mean and standard deviation (``n`` each), without observation noise.
        """
        model = self.model
        assert model is not None, "fit the surrogate first"
        cross = model.covar_module(x, self._x).to_dense()
        mean = model.mean_module(x) + cross @ self._alpha
        reduced = torch.linalg.solve_triangular(self._factor, cross.mT, upper=False)
        prior = model.covar_module(x, diag=True)
        variance = (prior - reduced.square().sum(0)).clamp_min(1e-10)
        return mean * self._scale + self._shift, variance.sqrt() * self._scale

    @torch.no_grad()
    def sample_weights(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of the additive damage table from the weights' posterior (``count x num_sites x max_levels``)."""
        shared, model = self.damage_model, self.model
        assert shared is not None and model is not None
        variance = model.covar_module.kernels[0].outputscale
        shares = shared.shares(self._x)
        reduced = torch.linalg.solve_triangular(self._factor, shares, upper=False)
        sites = shares.shape[1]
        covariance = variance * torch.eye(sites, dtype=torch.float64) - variance**2 * reduced.T @ reduced
        root = torch.linalg.cholesky(covariance + 1e-8 * torch.eye(sites, dtype=torch.float64))
        draws = torch.randn(count, sites, dtype=torch.float64, generator=generator) @ root.T
        return shared.additive_table() * draws.exp()[:, :, None]

    @property
    def noise_std(self) -> float:
        """What a repeated measurement would differ by, in log KL."""
        return float(self._noise.detach().sqrt()) * self._scale

    def state(self) -> dict[str, Tensor]:
        """Everything that ``predict`` needs, as tensors for safetensors."""
        assert self.model is not None
        tensors = {f"model.{k}": v.detach().contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {"train.x": self._x.contiguous(), "train.y": self.model.train_targets.contiguous()}
        return tensors | {"scaling": torch.tensor([self._shift, self._scale], dtype=torch.float64)}

    @classmethod
    def from_state(
        cls, space: SearchSpace, damage: np.ndarray | None, config: SurrogateConfig, state: dict[str, Tensor]
    ) -> Surrogate:
        """Rebuilds what ``state`` returned."""
        surrogate = cls(space, damage, config)
        shift, scale = state["scaling"].tolist()
        targets = state["train.y"]
        with gpytorch.settings.debug(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            surrogate.model = surrogate._build(state["train.x"], targets * scale + shift)
        surrogate.model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
        surrogate._shift, surrogate._scale = shift, scale
        surrogate._cache()
        return surrogate
