"""StratNet: a small network from a preference to a strategy, trained on the surrogate (UniCuCo, ACL Findings 2025).

It minimises the expected Tchebycheff value over preferences, with the surrogate's pessimistic bound for quality, and in
the ``damage`` form also learns from teachers: near-optimal strategies that an exact allocation finds on the surrogate
for many sizes at once. The gradient alone stalls on levels that come in whole KV groups; the teachers do not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from unicuco.objectives import Scale, tchebycheff
from unicuco.surrogate import Surrogate


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
    """Strategies to learn from: ``preference`` (``n x 2``) and ``strategy`` (``n x num_sites``)."""

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
        """``num_requests x num_objectives`` on the simplex -> ``num_requests x num_sites`` in (0, deepest)."""
        return torch.sigmoid(self.layers(preference)) * self.deepest


def draw_preferences(count: int, generator: torch.Generator, num_objectives: int = 2) -> Tensor:
    """Uniform on the simplex, Dirichlet(1, ..., 1) (``count x num_objectives``)."""
    draws = -torch.rand(count, num_objectives, generator=generator, dtype=torch.float64).clamp_min(1e-12).log()
    return draws / draws.sum(-1, keepdim=True)


def balanced_preference(size: Tensor, quality: Tensor) -> Tensor:
    """The preference at which scaled objective values are the Tchebycheff optimum: λ₁f₁ = λ₂f₂ (``n x 2``)."""
    size, quality = size.clamp_min(1e-3), quality.clamp_min(1e-3)
    return torch.stack([quality, size], dim=-1) / (size + quality)[:, None]


def train_stratnet(
    net: StratNet,
    surrogate: Surrogate,
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
        preference = draw_preferences(config.batch, generator)
        strategy = net(preference)
        mean, deviation = surrogate.predict(strategy)
        quality = scale.quality(mean + config.pessimism * deviation)
        values = torch.stack([scale.size(1 - strategy @ shares), quality], dim=-1).clamp_min(0)
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
