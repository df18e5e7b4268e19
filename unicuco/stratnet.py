"""StratNet: a small network from a preference to a strategy, trained on the surrogate (UniCuCo, ACL Findings 2025).

It minimises the expected Tchebycheff value over preferences, with the surrogates' pessimistic bounds for quality, and
in the ``damage`` form also learns from teachers: near-optimal strategies that an exact allocation finds on the
surrogates for many sizes, and shares of the domains, at once. The gradient alone stalls on levels that come in whole KV
groups; the teachers do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from unicuco.objectives import Scale, join_preferences, tchebycheff
from unicuco.qualities import Qualities


class StratNetConfig(Config):
    """Size and training of StratNet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=256, ge=1)
    steps: int = Field(default=400, ge=1)
    batch: int = Field(default=16, ge=1)
    """Preferences per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    tie_breaker: float = Field(default=0.01, ge=0)
    pessimism: float = Field(default=0.5, ge=0)
    """β of the bound μ + βσ that answers are trained on."""
    teaching: float = Field(default=10.0, ge=0)
    """Weight of the distance from the teachers; 0 is the paper's form."""


@dataclass(frozen=True)
class Teachers:
    """Strategies to learn from: ``preference`` (``n x num_objectives``) and ``strategy`` (``n x num_sites``)."""

    preference: Tensor
    strategy: Tensor


class StratNet(nn.Module):
    """Preference -> sparsities: MLP num_objectives -> width -> width -> num_sites, ReLU, sigmoid.

    Args:
        deepest: the largest sparsity of each site (``num_sites``); 1 where not given.
    """

    deepest: Tensor

    def __init__(self, num_objectives: int, num_sites: int, width: int = 256, deepest: Tensor | None = None) -> None:
        super().__init__()
        # The space knows it; a policy's file of weights need not.
        deepest = torch.ones(num_sites, dtype=torch.float64) if deepest is None else deepest
        self.register_buffer("deepest", deepest, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(num_objectives, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, num_sites),
        ).double()

    def forward(self, preference: Tensor) -> Tensor:
        """``num_requests x num_objectives`` on the simplex, size first -> ``num_requests x num_sites`` sparsities."""
        if preference.shape[-1] > 2:
            # Towards the small models all but size weigh nearly nothing; what they weigh among each other still counts.
            rest = preference[..., 1:]
            total = rest.sum(dim=-1, keepdim=True)
            shares = torch.where(total > 0, rest / total.clamp_min(1e-12), 1.0 / rest.shape[-1])
            preference = torch.cat([preference[..., :1], shares], dim=-1)
        return torch.sigmoid(self.layers(preference)) * self.deepest

    def on_arrays(self) -> Callable[[np.ndarray], np.ndarray]:
        """``forward`` for arrays, as the network is now: for a few requests, a third of what torch's modules take."""
        layers = [
            (m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in self.layers if isinstance(m, nn.Linear)
        ]
        deepest = self.deepest.numpy()

        def answer(preference: np.ndarray) -> np.ndarray:
            x = preference
            if x.shape[1] > 2:
                total = x[:, 1:].sum(axis=1, keepdims=True)
                shares = np.where(total > 0, x[:, 1:] / np.maximum(total, 1e-12), 1 / (x.shape[1] - 1))
                x = np.hstack([x[:, :1], shares])
            for weight, bias in layers[:-1]:
                x = np.maximum(x @ weight + bias, 0.0)
            weight, bias = layers[-1]
            return deepest / (1 + np.exp(-(x @ weight + bias)))

        return answer


def draw_preferences(count: int, generator: torch.Generator, num_objectives: int = 2) -> Tensor:
    """Uniform on the simplex, Dirichlet(1, ..., 1) (``count x num_objectives``)."""
    draws = -torch.rand(count, num_objectives, generator=generator, dtype=torch.float64).clamp_min(1e-12).log()
    return draws / draws.sum(-1, keepdim=True)


def spread_preferences(count: int, generator: torch.Generator, num_objectives: int = 2) -> Tensor:
    """Weight of size uniform, the rest shared out uniformly (``count x num_objectives``).

    Uniform on the simplex, size would hardly ever weigh much among many domains, and small models would go untrained.
    """
    size = draw_preferences(count, generator)[:, 0]
    return join_preferences(size, draw_shares(count, generator, num_objectives - 1))


def draw_shares(count: int, generator: torch.Generator, num_qualities: int) -> Tensor:
    """Shares of the qualities among each other, uniform on their simplex (``count x num_qualities``)."""
    if num_qualities == 1:
        return torch.ones(count, 1, dtype=torch.float64)
    return draw_preferences(count, generator, num_qualities)


def balanced_preference(values: Tensor, shares: Tensor) -> Tensor:
    """The preference with these shares at which scaled values are the Tchebycheff optimum: λ₁f₁ = Σ_d λ_d f_d.

    Args:
        values: ``n x num_objectives``; shares: ``n x num_qualities``.

    Returns:
        ``n x num_objectives``.
    """
    size = values[:, 0].clamp_min(1e-3)
    quality = (shares * values[:, 1:].clamp_min(1e-3)).sum(dim=-1)
    return join_preferences(quality / (size + quality), shares)


def train_stratnet(
    net: StratNet,
    qualities: Qualities,
    shares: Tensor,
    scale: Scale,
    teachers: Teachers | None,
    config: StratNetConfig,
    generator: torch.Generator,
) -> tuple[StratNet, float]:
    """Trains a copy of ``net``, warm-started from it.

    Args:
        shares: share of the blocks' parameters per site (``num_sites``).

    Returns:
        the trained copy and its mean loss over the last tenth of the steps.
    """
    net = copy.deepcopy(net).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, eta_min=config.learning_rate / 20)
    tail: list[float] = []
    for step in range(config.steps):
        preference = spread_preferences(config.batch, generator, 1 + len(qualities))
        strategy = net(preference)
        mean, deviation = qualities.predict(strategy)
        values = scale.values(1 - strategy @ shares, mean + config.pessimism * deviation).clamp_min(0)
        loss = tchebycheff(preference, values, config.tie_breaker).mean()
        if teachers is not None and config.teaching > 0:
            loss = loss + config.teaching * (net(teachers.preference) - teachers.strategy).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step >= min(config.steps * 0.9, config.steps - 1):
            tail.append(loss.item())
    return net.eval(), sum(tail) / len(tail)
