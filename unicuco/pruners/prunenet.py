"""PruneNet (Sengupta et al., ICLR 2025): which neurons stay, by one small policy that reads gate matrices, no text.

The policy, shared by all blocks, gives each row of a gate matrix W (``f x d``) an importance σ(P v), P = W Aᵀ + 1cᵀ.
While it learns, importances become binary-concrete samples q, and k rows are drawn in proportion to q, without
replacement; the nearer the spectrum of those rows is to that of W, the higher the reward R = 1/KS. The loss is
−R · Σ log q over the rows that were drawn (REINFORCE), and of all episodes the policy with the best total reward stays.

P v is W (Aᵀ v) + c·v: every row's product with one direction of the hidden space. We compute it like that, with no
``f x f`` matrix; gradients are the same.

That reward is the paper's (``reward="spectrum"``). On SmolLM2 it ranks wrongly (docs/decisions.md), so the default is
another one for the same policy (:mod:`unicuco.pruners.reinforce`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unicuco.errors import ModelError
from unicuco.pruners.neurons import highest, neurons_left
from unicuco.pruners.spectra import ks_distance, singular_values

Progress = Callable[[str, int, int], None]


class PruneNetConfig(BaseModel):
    """How a policy learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparsity: float = Field(default=0.4, gt=0, lt=1)
    """Share of the neurons that go while it learns; it chooses at any share afterwards."""
    reward: Literal["reproduction", "spectrum"] = "reproduction"
    """What is kept of the MLP's output on text that the model writes itself, or, as in the paper, of W's spectrum."""
    episodes: int | None = Field(default=None, ge=1)
    """``None``: 20 for the spectrum, as in the paper; 60 for reproduction."""
    learning_rate: float = Field(default=1e-3, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    """Of the spectrum's binary-concrete samples."""
    discount: float = Field(default=0.99, gt=0, le=1)
    weighs_more: Literal["early", "late"] = "late"
    """Block b of n: ``discount ** b`` (early, the authors' code) or ``discount ** (n - 1 - b)`` (late, their text)."""
    baseline: bool = False
    """Whether the spectrum's reward counts from the mean of a block's earlier episodes, not from 0 as in the paper."""
    draws: int = Field(default=4, ge=2)
    """Of rows per block and episode, for reproduction: each counts from the mean of all."""
    texts: int = Field(default=16, ge=1)
    text_length: int = Field(default=64, ge=2)
    """For reproduction the model writes ``texts`` texts of so many tokens each."""
    seed: int = Field(default=0, ge=0)

    @property
    def episodes_to_learn(self) -> int:
        return self.episodes or (20 if self.reward == "spectrum" else 60)

    def weights(self, blocks: int) -> Tensor:
        """What each block's reward counts (``blocks``)."""
        powers = torch.arange(blocks, dtype=torch.float64)
        return self.discount ** (powers if self.weighs_more == "early" else powers.flip(0))


class PolicyNetwork(nn.Module):
    """A (``f x d``), c (``f``) and v (``f``)."""

    def __init__(self, neurons: int, hidden: int, generator: torch.Generator | None = None) -> None:
        super().__init__()

        def draw(fan_in: int, *shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * fan_in**-0.5)

        self.projection, self.bias = draw(hidden, neurons, hidden), draw(hidden, neurons)
        self.read = draw(neurons, neurons)

    def forward(self, gate: Tensor) -> Tensor:
        """Logits of the importance of every row of ``gate`` (``f x d``): P v (``f``)."""
        found: Tensor = gate @ (self.projection.T @ self.read) + self.bias @ self.read
        return found


@dataclass
class Training:
    """What happened.

    Attributes:
        rewards: of every episode, the mean over blocks, weighted by the discount: 1/KS of the rows that were drawn, or
            −ln of the share of the output that is lost with the rows that the policy would keep, without chance.
        best: the episode whose policy was kept.
    """

    rewards: list[float] = field(default_factory=list)
    best: int = 0


def learn_spectrum(
    gates: Sequence[Tensor],
    config: PruneNetConfig,
    report: Progress = lambda what, done, total: None,
) -> tuple[PolicyNetwork, Training]:
    """A policy by the paper's reward for the model with these gate matrices (``f x d`` each, float32, on the CPU).

    Raises:
        ModelError: gate matrices of several shapes, which one policy cannot read. StrategyError: no neuron is left.
    """
    check_gates(gates, tuple(gates[0].shape))
    kept = neurons_left(len(gates[0]), config.sparsity)
    generator = torch.Generator().manual_seed(config.seed)
    network = PolicyNetwork(gates[0].shape[0], gates[0].shape[1], generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    whole = [singular_values(gate) for gate in gates]
    weights = config.weights(len(gates))
    training, best, seen = Training(), copy_of(network), torch.zeros(len(gates), dtype=torch.float64)
    for episode in range(config.episodes_to_learn):
        report("learning what to keep", episode, config.episodes_to_learn)
        rewards, losses = torch.zeros(len(gates), dtype=torch.float64), []
        for b, gate in enumerate(gates):
            log_q = concrete(network(gate), config.temperature, generator)
            drawn = draw_rows(log_q.detach(), kept, generator)
            rewards[b] = reward(whole[b], gate[drawn])
            past = seen[b] / episode if config.baseline and episode else 0.0
            losses.append(reinforce_loss(log_q, drawn, float(weights[b] * (rewards[b] - past))))
        training.rewards.append(float((weights * rewards).sum() / weights.sum()))
        if training.rewards[episode] > training.rewards[training.best] or episode == 0:
            # The policy that drew these rows, before it learns from them.
            training.best, best = episode, copy_of(network)
        seen += rewards
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    report("learning what to keep", config.episodes_to_learn, config.episodes_to_learn)
    network.load_state_dict(best)
    return network.eval().requires_grad_(False), training


@torch.no_grad()
def choose_neurons(network: PolicyNetwork, gates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Ascending indices of the most important ``⌊(1 − sparsity) f⌋`` neurons of every block, no chance involved.

    Raises:
        ModelError: the policy learned on gate matrices of another shape.
    """
    check_gates(gates, tuple(network.projection.shape))
    return [highest(network(gate), neurons_left(len(gate), sparsity)) for gate in gates]


def check_gates(gates: Sequence[Tensor], shape: tuple[int, ...]) -> None:
    for b, gate in enumerate(gates):
        if tuple(gate.shape) != shape:
            raise ModelError(
                f"A PruneNet policy for {shape[0]} neurons and a hidden size of {shape[1]} does not fit block {b}, "
                f"which has {gate.shape[0]} and {gate.shape[1]}."
            )


def concrete(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """log q of one binary-concrete sample per row: q = σ((logits + logistic noise) ÷ temperature)."""
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    return nn.functional.logsigmoid((logits + uniform.logit()) / temperature)


def draw_rows(log_q: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Ascending indices of ``count`` rows, one drawn after another without replacement in proportion to q."""
    return torch.multinomial(log_q.exp().clamp_min(1e-30), count, generator=generator).sort().values


def reward(whole: Tensor, kept: Tensor) -> float:
    """1/KS between the singular values of all rows (``whole``) and of the rows ``kept``; at most their number."""
    return 1 / max(ks_distance(whole, singular_values(kept)), 1 / len(whole))


def reinforce_loss(log_q: Tensor, drawn: Tensor, worth: float) -> Tensor:
    """−R · Σ log q over the rows that were drawn."""
    return -worth * log_q[drawn].sum()


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    """Its state dict now."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
