"""The surrogate: a Gaussian process of log KL over strategies, with an informed mean or the paper's plain one."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields
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
from linear_operator import to_dense
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field
from torch import Tensor

from unicuco.damage import DamageMean, DamageModel, ShareKernel, drift
from unicuco.slopes import WINDOW_LUCK, SlopeData, Slopes, average_slopes
from unicuco.space import SearchSpace

NOISE_FLOOR = 1e-4
"""Added to a KL before its logarithm: differences below it are noise."""
MIDDLE_SIZES = (0.5, 0.7, 0.9)
"""Kept shares whose mean weights the model is linearised at."""


class SurrogateConfig(Config):
    """Which Gaussian process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Literal["damage", "plain"] = "damage"
    """``damage``: additive monotone mean, GP on weights and residual. ``plain``: the paper's GP, BoTorch defaults."""
    relinearise: int = Field(default=2, ge=1)
    """Rounds of: fit hyper-parameters, move the sites' weights to their posterior mean."""
    fit_points: int = Field(default=500, ge=10)
    """Hyper-parameters, a dozen numbers, are fitted to so many evaluations at most, evenly over the run."""
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
        self._slopes: Slopes | None = None
        self._slope_data: SlopeData | None = None
        self._shift, self._scale = 0.0, 1.0

    def fit(self, levels: np.ndarray, kl: np.ndarray, slopes: Slopes | None = None) -> Surrogate:
        """Fits hyper-parameters and weights to evaluations.

        Args:
            levels: ``n x num_sites`` level indices, n >= 2.
            kl: ``n`` KLs in nats per token.
            slopes: what margins measured; the ``damage`` form alone learns from them, and they leave the
                hyper-parameters alone.
        """
        self._slopes = slopes if slopes is not None and len(slopes) and self.config.mean == "damage" else None
        x = torch.as_tensor(self.space.sparsities(levels))
        y = torch.as_tensor(np.log(np.maximum(kl, 0.0) + NOISE_FLOOR))
        self.model = self._build(x, y)
        rounds = self.config.relinearise if self.config.mean == "damage" else 1
        for _ in range(rounds):
            self._fit_hyperparameters()
            self._cache()
            if self.config.mean == "damage":
                self._move_weights()
        self._cache()
        self.model.requires_grad_(False)  # who follows its gradient follows it to strategies
        return self

    def _fit_hyperparameters(self) -> None:
        """To a part of the data; the model has all of it again afterwards."""
        model = self.model
        assert model is not None
        whole = (model.train_inputs[0], model.train_targets)
        part = torch.linspace(0, len(whole[1]) - 1, min(len(whole[1]), self.config.fit_points)).round().long()
        model.set_train_data(whole[0][part], whole[1][part], strict=False)  # type: ignore[operator]
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # botorch warns of every optimiser restart
            fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 75}})
        model.set_train_data(*whole, strict=False)  # type: ignore[operator]

    def _build(self, x: Tensor, y: Tensor) -> SingleTaskGP:
        if self.config.mean == "plain":
            self._shift, self._scale = float(y.mean()), max(float(y.std()), 1e-3)
            return SingleTaskGP(x, ((y - self._shift) / self._scale)[:, None], outcome_transform=None)
        assert self._damage is not None, "the damage mean needs the preparation's damage table"
        shared = DamageModel(self.space, torch.as_tensor(self._damage))
        residual = MaternKernel(nu=2.5, lengthscale_prior=LogNormalPrior(math.log(2.0), 0.7))
        residual.lengthscale = 2.0
        parts = []
        for kernel, scale, spread in ((ShareKernel(shared), 0.5, 0.25), (residual, 0.04, 0.5)):
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
        covariance = covariance + self._luck()
        gap = model.train_targets - model.mean_module(self._x)
        shared = self.damage_model
        if self._slopes is not None and shared is not None:
            data = self._slope_data = average_slopes(self._slopes, shared)
            own = self._variance * drift(data.kept, data.kept) * (data.steps @ shared.neighbours @ data.steps.T)
            across = self._to_slopes(self._x)
            covariance = torch.cat([torch.cat([covariance, across], 1), torch.cat([across.T, own + data.error], 1)])
            gap = torch.cat([gap, data.gap])
        self._remember_pulls()
        self._factor = torch.linalg.cholesky(covariance)
        self._alpha = torch.cholesky_solve(gap[:, None], self._factor)[:, 0]
        self._noise = noise

    def _luck(self) -> Tensor | float:
        """What evaluations have in common because all run on the same few windows, and no other text shares with them.

        Their sites' weights differ from those on all text. Without this term, hundreds of evaluations would teach the
        peculiarities of those windows, and answers would be made for them. Only slopes, measured on other windows, can
        tell the two apart: without any, all is taken for weight.
        """
        shared = self.damage_model
        if shared is None or self._slopes is None:
            return 0.0
        shares = shared.shares(self._x)
        return WINDOW_LUCK**2 * shares @ shares.T

    @property
    def _variance(self) -> Tensor:
        """τ²: prior variance of a site's log weight."""
        assert self.model is not None
        return self.model.covar_module.kernels[0].outputscale

    def _to_slopes(self, x: Tensor) -> Tensor:
        """Covariance of log KL at ``x`` with the slopes (``n x num_slopes``), through the weights alone."""
        shared, data = self.damage_model, self._slope_data
        assert shared is not None and data is not None
        shares = shared.shares(x) @ shared.neighbours @ data.steps.T
        return self._variance * drift(shared.kept(x), data.kept) * shares

    def _remember_pulls(self) -> None:
        """How all data pull at the sites' weights: J P (``num_data x num_sites``), and their kept shares."""
        shared = self.damage_model
        if shared is None:
            return
        pulls, at = shared.shares(self._x), shared.kept(self._x)
        if self._slope_data is not None:
            pulls, at = torch.cat([pulls, self._slope_data.steps]), torch.cat([at, self._slope_data.kept])
        self._pulls, self._at = pulls @ shared.neighbours, at

    def _weights_to_data(self, kept: Tensor) -> Tensor:
        """Covariance of every site's log weight at ``kept`` with all data (``num_sites x num_data``)."""
        return self._variance * (drift(kept[None], self._at).T * self._pulls).T

    @torch.no_grad()
    def log_weights(self, kept: Tensor) -> Tensor:
        """Posterior mean of the sites' log weights at each kept share (``n`` -> ``n x num_sites``)."""
        return self._variance * (drift(kept, self._at) * self._alpha) @ self._pulls

    def _to_data(self, x: Tensor, shares: Tensor) -> Tensor:
        """Covariance of log KL at ``x`` (with shares J(x)) with all data (``n x num_data``), from what is remembered.

        The other kernels are asked past gpytorch's lazy tensors, which here take longer than what they put off.
        """
        model, shared = self.model, self.damage_model
        assert model is not None and shared is not None
        through = self._variance * drift(shared.kept(x), self._at) * (shares @ self._pulls.T)
        evaluations = through[:, : len(self._x)]
        for rest in model.covar_module.kernels[1:]:
            evaluations = evaluations + to_dense(rest.forward(x, self._x))
        return torch.cat([evaluations, through[:, len(self._x) :]], dim=-1)

    @torch.no_grad()
    def tables(self, kept: np.ndarray) -> np.ndarray:
        """Additive damage tables as they are at each kept share (``n`` -> ``n x num_sites x max_levels``)."""
        shared = self.damage_model
        assert shared is not None, "the plain surrogate has no tables"
        return shared.additive_table(self.log_weights(torch.as_tensor(kept))).numpy()

    @torch.no_grad()
    def _move_weights(self) -> None:
        """Sets the sites' weights to their posterior mean over sizes: the next linearisation starts there."""
        shared = self.damage_model
        assert shared is not None
        shared.log_weight.copy_(self.log_weights(torch.tensor(MIDDLE_SIZES, dtype=torch.float64)).mean(0))

    def predict(self, x: Tensor, on_search_windows: bool = False) -> tuple[Tensor, Tensor]:
        """Posterior of log KL, differentiable in ``x``.

        Args:
            x: ``n x num_sites`` sparsities, float64.
            on_search_windows: with the sites' weights on the windows that evaluations run on, as the next evaluation
                will measure them; else with those on all text, which answers are made for.

        Returns:
            mean and standard deviation (``n`` each), without observation noise.
        """
        model = self.model
        assert model is not None, "fit the surrogate first"
        shared = self.damage_model
        if shared is None:
            ahead, prior = model.mean_module(x), model.covar_module(x, diag=True)
            cross = model.covar_module(x, self._x).to_dense()
        else:
            ahead, shares = shared.linearised(x)
            prior = self._variance * ((shares @ shared.neighbours) * shares).sum(-1)
            prior = prior + sum(rest(x, diag=True) for rest in model.covar_module.kernels[1:])
            cross = self._to_data(x, shares)
            if on_search_windows and self._slopes is not None:
                luck = WINDOW_LUCK**2 * shares @ shared.shares(self._x).T
                cross = cross + torch.nn.functional.pad(luck, (0, cross.shape[1] - luck.shape[1]))  # slopes: none
                prior = prior + WINDOW_LUCK**2 * shares.square().sum(-1)
        mean = ahead + cross @ self._alpha
        reduced = torch.linalg.solve_triangular(self._factor, cross.mT, upper=False)
        variance = (prior - reduced.square().sum(0)).clamp_min(1e-10)
        return mean * self._scale + self._shift, variance.sqrt() * self._scale

    @torch.no_grad()
    def sample_tables(self, kept: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Draws of the additive damage table from the weights' posterior, one for each kept share.

        Returns:
            ``n x num_sites x max_levels``. Shares are rounded to twentieths, so that equal ones share their algebra:
            a triangular solve of num_data² x num_sites each, over which weights hardly drift (``SPAN``).
        """
        shared = self.damage_model
        assert shared is not None, "the plain surrogate has no tables"
        rounded = np.round(20 * kept) / 20
        tables = np.empty((len(kept), *shared.damage.shape))
        for size in np.unique(rounded):
            rows = np.flatnonzero(rounded == size)
            across = self._weights_to_data(torch.tensor(size, dtype=torch.float64))
            reduced = torch.linalg.solve_triangular(self._factor, across.T, upper=False)
            sites = len(across)
            covariance = self._variance * shared.neighbours - reduced.T @ reduced
            root = torch.linalg.cholesky(covariance + 1e-8 * torch.eye(sites, dtype=torch.float64))
            draws = torch.randn(len(rows), sites, dtype=torch.float64, generator=generator) @ root.T
            tables[rows] = shared.additive_table(across @ self._alpha + draws).numpy()
        return tables

    @property
    def noise_std(self) -> float:
        """What a repeated measurement would differ by, in log KL."""
        return float(self._noise.detach().sqrt()) * self._scale

    def state(self) -> dict[str, Tensor]:
        """Everything that ``predict`` needs, as tensors for safetensors."""
        assert self.model is not None
        tensors = {f"model.{k}": v.detach().contiguous() for k, v in self.model.state_dict().items()}
        tensors |= {"train.x": self._x.contiguous(), "train.y": self.model.train_targets.contiguous()}
        if self._slopes is not None:
            tensors |= {f"slopes.{name}": tensor.contiguous() for name, tensor in vars(self._slopes).items()}
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
        if "slopes.rise" in state:
            surrogate._slopes = Slopes(**{field.name: state[f"slopes.{field.name}"] for field in fields(Slopes)})
        surrogate._cache()
        surrogate.model.requires_grad_(False)
        return surrogate
