"""REINFORCE by reproduction: exact log-probabilities, advantages, and a policy that loses less than chance."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.unicuco import tiny
from unicuco.errors import StrategyError
from unicuco.models.sites import find_blocks
from unicuco.pruners.neurons import gate_matrices, largest_rows, random_neurons
from unicuco.pruners.prunenet import PruneNetConfig, choose_neurons
from unicuco.pruners.reinforce import advantages, draw_orders, learn_to_reproduce, log_probability, reward
from unicuco.pruners.selfwritten import losses_by_pairs, write_texts


def test_probabilities_of_all_draws_are_the_textbooks_and_add_up_to_one() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    total = 0.0
    for order in itertools.permutations(range(4)):
        odds, chance = logits.exp().tolist(), 1.0
        for place in range(2):
            chance *= odds[order[place]] / sum(odds[i] for i in order[place:])
        found = float(log_probability(logits, torch.tensor([order]), 2).exp())
        assert found == pytest.approx(chance, rel=1e-12)
        total += found
    assert total == pytest.approx(2)  # the two rows that are left come in either order


def test_rows_are_drawn_with_these_probabilities() -> None:
    logits, generator = torch.tensor([1.0, 0.0, -1.0]), torch.Generator().manual_seed(0)
    orders = draw_orders(logits, 20000, generator)
    for order in itertools.permutations(range(3)):
        share = (orders == torch.tensor(order)).all(1).float().mean()
        expected = float(log_probability(logits, torch.tensor([order]), 3).exp())
        assert float(share) == pytest.approx(expected, abs=4 * math.sqrt(expected / 20000))


def test_gradients_add_up_to_nothing_where_every_draw_is_worth_the_same() -> None:
    """The score's mean is 0, which Σ log q over the rows that were drawn is not."""
    logits = torch.tensor([0.5, -0.5, 0.1], requires_grad=True)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    logs = log_probability(logits, orders, 2)
    (logs.exp().detach() * logs).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3), rtol=0, atol=1e-6)


def test_advantages_have_no_mean_and_one_size() -> None:
    assert torch.equal(advantages(torch.full((4,), 2.5)), torch.zeros(4))
    torch.testing.assert_close(advantages(torch.tensor([1.0, 2, 3]) * 1e-2), torch.tensor([-1.0, 0, 1]))


def uneven_model(family: str) -> torch.nn.Module:
    """Neurons whose gate rows point along one direction of the hidden space add more; their rows are shorter."""
    model = tiny.random_model(family)
    for block in find_blocks(model):
        gate, down = block.mlp.gate_proj.weight.data, block.mlp.down_proj.weight.data
        loud = gate[:, 0] > gate[:, 0].median()
        gate[loud] *= 0.8
        down[:, loud] *= 3
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_policy_loses_less_than_chance_and_norms_on_other_texts_and_at_other_shares(family: str) -> None:
    model = uneven_model(family)
    gates = gate_matrices(model)
    config = PruneNetConfig(sparsity=0.4)
    seen, unseen = (losses_by_pairs(model, write_texts(model, 16, 32, seed)) for seed in (0, 1))
    network, training = learn_to_reproduce(gates, seen, config)
    assert training.rewards[training.best] == max(training.rewards) > training.rewards[0]

    def lost(kept: list[torch.Tensor]) -> float:
        return float(
            torch.cat([-reward(q, rows[None]) for q, rows in zip(unseen, kept, strict=True)]).mean().neg().exp()
        )

    for sparsity in (0.4, 0.25):
        others = [random_neurons(gates, sparsity, 0), random_neurons(gates, sparsity, 1), largest_rows(gates, sparsity)]
        assert lost(choose_neurons(network, gates, sparsity)) > 1.2 * max(lost(other) for other in others)


def test_no_neuron_left_is_refused() -> None:
    with pytest.raises(StrategyError, match="none is left"):
        learn_to_reproduce([torch.ones(4, 2)], [torch.eye(4)], PruneNetConfig(sparsity=0.9))
