"""How a PruneNet policy learns to keep what an MLP does: REINFORCE with exact log-probabilities and a baseline.

Rows are drawn one after another without replacement in proportion to exp(logit) (Plackett-Luce; as k largest of
logits plus Gumbel noise). Then log p of a draw is known: Σ over its places of the logit minus the log-sum-exp of the
logits that were still there. The reward is −ln of the share of the MLP's output that is lost on text that the model
wrote itself (:mod:`unicuco.pruners.selfwritten`); it counts from the mean of the block's draws of that episode, in
units of their spread, because blocks differ in how much any choice can lose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unicuco.pruners.neurons import highest, neurons_left
from unicuco.pruners.prunenet import PolicyNetwork, Progress, PruneNetConfig, Training, check_gates, copy_of
from unicuco.pruners.selfwritten import share_lost


def learn_to_reproduce(
    gates: Sequence[Tensor],
    pairs: Sequence[Tensor],
    config: PruneNetConfig,
    report: Progress = lambda what, done, total: None,
) -> tuple[PolicyNetwork, Training]:
    """A policy for the model with these gate matrices (``f x d`` each, float32, on the CPU).

    Args:
        pairs: Q of every block (``f x f``), from :func:`unicuco.pruners.selfwritten.losses_by_pairs`.

    Raises:
        ModelError: gate matrices of several shapes. StrategyError: no neuron is left.
    """
    check_gates(gates, tuple(gates[0].shape))
    kept = neurons_left(len(gates[0]), config.sparsity)
    generator = torch.Generator().manual_seed(config.seed)
    network = PolicyNetwork(gates[0].shape[0], gates[0].shape[1], generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate)
    weights = config.weights(len(gates)).float()
    training, best = Training(), copy_of(network)
    for episode in range(config.episodes_to_learn):
        report("learning what to keep", episode, config.episodes_to_learn)
        choices, losses = torch.zeros(len(gates)), []
        for b, (gate, q) in enumerate(zip(gates, pairs, strict=True)):
            logits = network(gate)
            orders = draw_orders(logits.detach(), config.draws, generator)
            chosen = highest(logits.detach(), kept)
            rewards = reward(q, torch.cat([orders[:, :kept], chosen[None]]))
            choices[b] = rewards[-1]
            worth = weights[b] * advantages(rewards[:-1])
            losses.append(-(worth * log_probability(logits, orders, kept)).mean() / len(gate))
        training.rewards.append(float((weights * choices).sum() / weights.sum()))
        if training.rewards[episode] > training.rewards[training.best] or episode == 0:
            training.best, best = episode, copy_of(network)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    report("learning what to keep", config.episodes_to_learn, config.episodes_to_learn)
    network.load_state_dict(best)
    return network.eval().requires_grad_(False), training


def draw_orders(logits: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """All rows (``draws x f``) in the order in which they are drawn without replacement in proportion to exp(logit)."""
    uniform = torch.rand((draws, len(logits)), generator=generator).clamp(1e-9, 1 - 1e-7)
    return (logits - (-uniform.log()).log()).argsort(-1, descending=True)


def log_probability(logits: Tensor, orders: Tensor, kept: int) -> Tensor:
    """log p (``draws``) that the first ``kept`` rows of ``orders`` (``draws x f``) come first, and in this order."""
    ordered = logits[orders]
    left = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    return (ordered - left)[:, :kept].sum(-1)


def reward(pairs: Tensor, kept: Tensor) -> Tensor:
    """−ln of the share of the output that is lost (``sets``) where only the rows ``kept`` (``sets x k``) stay."""
    gone = torch.ones(len(kept), len(pairs)).scatter(1, kept, 0)
    return -share_lost(pairs, gone).clamp_min(1e-12).log()


def advantages(rewards: Tensor) -> Tensor:
    """Rewards from their mean, in units of their spread; 0 where all are the same."""
    return (rewards - rewards.mean()) / rewards.std().clamp_min(1e-6)
