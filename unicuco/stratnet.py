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

from unicuco.costs import Costs
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
        num_costs: how many of the objectives are costs; the others are qualities.
    """

    deepest: Tensor

    def __init__(
        self,
        num_objectives: int,
        num_sites: int,
        width: int = 256,
        deepest: Tensor | None = None,
        num_costs: int = 1,
    ) -> None:
        super().__init__()
        self.num_costs = num_costs
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
        """``num_requests x num_objectives`` on the simplex, costs first -> ``num_requests x num_sites`` sparsities."""
        if preference.shape[-1] > 2:
            # Towards the small models qualities weigh nearly nothing, towards the dense one costs do; what they weigh
            # among each other still counts.
            k = self.num_costs
            weight, of_costs = _part(preference[..., :k])
            _, shares = _part(preference[..., k:])
            preference = torch.cat([weight, of_costs[..., 1:], shares], dim=-1)
        return torch.sigmoid(self.layers(preference)) * self.deepest

    def on_arrays(self) -> Callable[[np.ndarray], np.ndarray]:
        """``forward`` for arrays, as the network is now: for a few requests, a third of what torch's modules take."""
        layers = [
            (m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in self.layers if isinstance(m, nn.Linear)
        ]
        deepest, k = self.deepest.numpy(), self.num_costs

        def part(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            total = weights.sum(axis=1, keepdims=True)
            return total, np.where(total > 0, weights / np.maximum(total, 1e-12), 1 / weights.shape[1])

        def answer(preference: np.ndarray) -> np.ndarray:
            x = preference
            if x.shape[1] > 2:
                (weight, of_costs), (_, shares) = part(x[:, :k]), part(x[:, k:])
                x = np.hstack([weight, of_costs[:, 1:], shares])
            for weight, bias in layers[:-1]:
                x = np.maximum(x @ weight + bias, 0.0)
            weight, bias = layers[-1]
            return deepest / (1 + np.exp(-(x @ weight + bias)))

        return answer


def _part(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of some weights (``... x 1``), and the share of each in it (``... x n``); of nothing all alike."""
    total = weights.sum(dim=-1, keepdim=True)
    return total, torch.where(total > 0, weights / total.clamp_min(1e-12), 1.0 / weights.shape[-1])


def draw_preferences(count: int, generator: torch.Generator, num_objectives: int = 2) -> Tensor:
    """Uniform on the simplex, Dirichlet(1, ..., 1) (``count x num_objectives``)."""
    draws = -torch.rand(count, num_objectives, generator=generator, dtype=torch.float64).clamp_min(1e-12).log()
    return draws / draws.sum(-1, keepdim=True)


def spread_preferences(count: int, generator: torch.Generator, num_objectives: int = 2, num_costs: int = 1) -> Tensor:
    """Weight of costs uniform, and each side shared out uniformly (``count x num_objectives``).

    Uniform on the simplex, size would hardly ever weigh much among many domains, and small models would go untrained.
    """
    weight = draw_preferences(count, generator)[:, 0]
    shares = draw_shares(count, generator, num_objectives - num_costs)
    return join_preferences(weight, draw_shares(count, generator, num_costs), shares)


def draw_shares(count: int, generator: torch.Generator, parts: int) -> Tensor:
    """Shares of qualities, or of costs, among each other, uniform on their simplex (``count x parts``)."""
    if parts == 1:
        return torch.ones(count, 1, dtype=torch.float64)
    return draw_preferences(count, generator, parts)


def balanced_preference(values: Tensor, of_costs: Tensor, shares: Tensor) -> Tensor:
    """The preference with these shares at which scaled values are the Tchebycheff optimum: Σ_c λ_c f_c = Σ_d λ_d f_d.

    Args:
        values: ``n x num_objectives``; of_costs: ``n x num_costs``; shares: ``n x num_qualities``.

    Returns:
        ``n x num_objectives``.
    """
    k = of_costs.shape[1]
    cost = (of_costs * values[:, :k].clamp_min(1e-3)).sum(dim=-1)
    quality = (shares * values[:, k:].clamp_min(1e-3)).sum(dim=-1)
    return join_preferences(quality / (cost + quality), of_costs, shares)


def train_stratnet(
    net: StratNet,
    qualities: Qualities,
    costs: Costs,
    scale: Scale,
    teachers: Teachers | None,
    config: StratNetConfig,
    generator: torch.Generator,
) -> tuple[StratNet, float]:
    """Trains a copy of ``net``, warm-started from it.

    Returns:
        the trained copy and its mean loss over the last tenth of the steps.
    """
    net = copy.deepcopy(net).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, eta_min=config.learning_rate / 20)
    tail: list[float] = []
    for step in range(config.steps):
        preference = spread_preferences(config.batch, generator, len(costs) + len(qualities), len(costs))
        strategy = net(preference)
        mean, deviation = qualities.predict(strategy)
        values = scale.values(costs.of_sparsities(strategy), mean + config.pessimism * deviation).clamp_min(0)
        loss = tchebycheff(preference, values, config.tie_breaker, len(costs)).mean()
        if teachers is not None and config.teaching > 0:
            loss = loss + config.teaching * (net(teachers.preference) - teachers.strategy).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step >= min(config.steps * 0.9, config.steps - 1):
            tail.append(loss.item())
    return net.eval(), sum(tail) / len(tail)
