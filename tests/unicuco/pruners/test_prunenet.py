"""PruneNet: the spectrum's distance, REINFORCE's gradients, learning, policies on disk, and no text read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from unicuco.errors import ModelError, PolicyError, StrategyError
from unicuco.pruners.neurons import largest_rows, neurons_left, random_neurons
from unicuco.pruners.policyfile import load_prunenet, save_prunenet
from unicuco.pruners.prunenet import (
    PolicyNetwork,
    PruneNetConfig,
    choose_neurons,
    concrete,
    draw_rows,
    learn_spectrum,
    reinforce_loss,
    reward,
)
from unicuco.pruners.spectra import ks_distance, singular_values


def gates(count: int = 3, neurons: int = 48, hidden: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(neurons, hidden, generator=generator) for _ in range(count)]


def telling_gates(count: int = 4, neurons: int = 64, hidden: int = 16) -> list[torch.Tensor]:
    """The first half of the rows spans the space and has a common component; the others add nothing to the spectrum."""
    found = gates(count, neurons, hidden, 1)
    for gate in found:
        gate[neurons // 2 :] *= 1e-3
        gate[: neurons // 2, 0] += 3
    return found


@pytest.mark.parametrize(("first", "second"), [(40, 40), (40, 25), (7, 90)])
def test_ks_is_that_of_scipy(first: int, second: int) -> None:
    rng = np.random.default_rng(first)
    a, b = np.round(rng.normal(size=first), 1), np.round(rng.normal(0.3, 2, second), 1)  # rounded: there are ties
    assert ks_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_singular_values_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(singular_values(weight), torch.linalg.svdvals(weight).flip(0))


def test_the_policy_is_the_papers_formula() -> None:
    network, gate = PolicyNetwork(48, 16, torch.Generator().manual_seed(0)), gates()[0]
    full = gate @ network.projection.T + torch.ones(48, 1) @ network.bias[None]
    torch.testing.assert_close(network(gate), full @ network.read)


def test_gradients_are_reinforce_by_hand() -> None:
    """log q = log σ((Pv + noise)/τ), so d(−R Σ log q)/d(Pv) = −R (1 − q)/τ where drawn, and 0 elsewhere."""
    gate, temperature = gates(neurons=6, hidden=3)[0].double(), 0.7
    network = PolicyNetwork(6, 3, torch.Generator().manual_seed(0)).double()
    log_q = concrete(network(gate), temperature, torch.Generator().manual_seed(1))
    drawn = torch.tensor([0, 2, 5])
    reinforce_loss(log_q, drawn, 4.5).backward()
    slope = np.zeros(6)
    slope[drawn.numpy()] = -4.5 * (1 - np.exp(log_q.detach().numpy()[drawn.numpy()])) / temperature
    a, c, v, w = (t.detach().numpy() for t in (network.projection, network.bias, network.read, gate))
    np.testing.assert_allclose(network.read.grad, (w @ a.T + c).T @ slope, rtol=1e-9)
    np.testing.assert_allclose(network.projection.grad, np.outer(v, w.T @ slope), rtol=1e-9)
    np.testing.assert_allclose(network.bias.grad, v * slope.sum(), rtol=1e-9)


def test_rows_are_drawn_once_each_and_likely_ones_more_often() -> None:
    log_q, generator = torch.tensor([0.9, 0.1, 0.1, 0.1]).log(), torch.Generator().manual_seed(0)
    draws = [draw_rows(log_q, 2, generator) for _ in range(200)]
    assert all(len(set(rows.tolist())) == 2 for rows in draws)
    assert sum(0 in rows.tolist() for rows in draws) > 150


def test_learning_raises_the_reward_where_rows_matter() -> None:
    found = telling_gates()

    def total(network: PolicyNetwork) -> float:
        kept = choose_neurons(network, found, 0.5)
        return sum(reward(singular_values(g), g[rows]) for g, rows in zip(found, kept, strict=True))

    before = total(PolicyNetwork(64, 16, torch.Generator().manual_seed(0)))
    network, training = learn_spectrum(found, PruneNetConfig(sparsity=0.5, episodes=40, reward="spectrum"))
    assert training.rewards[training.best] == max(training.rewards) > training.rewards[0]
    assert total(network) > 1.5 * before and total(network) == 4 * 16  # nothing of the spectrum is lost


def test_a_block_counts_by_the_discount() -> None:
    late, early = PruneNetConfig(discount=0.5), PruneNetConfig(discount=0.5, weighs_more="early")
    assert late.weights(3).tolist() == [0.25, 0.5, 1] and early.weights(3).tolist() == [1, 0.5, 0.25]


def test_episodes_are_the_papers_for_its_reward_unless_said() -> None:
    paper = PruneNetConfig(reward="spectrum")
    assert paper.episodes_to_learn == 20 and PruneNetConfig().episodes_to_learn == 60
    assert paper.model_copy(update={"episodes": 7}).episodes_to_learn == 7


def test_the_same_seed_learns_the_same_and_another_does_not() -> None:
    config = PruneNetConfig(episodes=4)
    first, second, other = (
        learn_spectrum(gates(), c)[0] for c in (config, config, config.model_copy(update={"seed": 1}))
    )
    assert torch.equal(first.projection, second.projection) and not torch.equal(first.projection, other.projection)


def test_one_policy_chooses_at_any_share_and_what_stays_at_less_stays_at_more() -> None:
    network, _ = learn_spectrum(gates(), PruneNetConfig(sparsity=0.4, episodes=3))
    for gate, few, many in zip(
        gates(), choose_neurons(network, gates(), 0.5), choose_neurons(network, gates(), 0.2), strict=True
    ):
        assert len(few) == 24 and len(many) == neurons_left(48, 0.2) == 38
        assert set(few.tolist()) < set(many.tolist()) <= set(range(len(gate)))
        assert many.tolist() == sorted(many.tolist())


def test_a_policy_comes_back_from_disk(tmp_path: Path) -> None:
    config = PruneNetConfig(episodes=3, seed=5, reward="spectrum")
    network, training = learn_spectrum(gates(), config)
    save_prunenet(tmp_path / "policy", network, config, training, "digest")
    loaded, learned = load_prunenet(tmp_path / "policy")
    assert learned == config and json.loads((tmp_path / "policy" / "policy.json").read_text())["best"] == training.best
    for a, b in zip(choose_neurons(network, gates(), 0.3), choose_neurons(loaded, gates(), 0.3), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(PolicyError, match="exists already"):
        save_prunenet(tmp_path / "policy", network, config, training, "digest")
    record = json.loads((tmp_path / "policy" / "policy.json").read_text())
    del record["config"]["reward"]  # written before there was a choice
    (tmp_path / "policy" / "policy.json").write_text(json.dumps(record))
    assert load_prunenet(tmp_path / "policy")[1] == config
    (tmp_path / "policy" / "policy.safetensors").write_bytes(b"no")
    with pytest.raises(PolicyError, match="no PruneNet policy"):
        load_prunenet(tmp_path / "policy")
    with pytest.raises(ModelError, match="48 neurons and a hidden size of 16"):
        choose_neurons(network, gates(hidden=8), 0.3)


def test_comparisons_choose_what_they_say() -> None:
    found = gates()
    for gate, rows in zip(found, largest_rows(found, 0.25), strict=True):
        gone = gate.norm(dim=1)[[i for i in range(48) if i not in rows.tolist()]]
        assert len(rows) == 36 and gate.norm(dim=1)[rows].min() >= gone.max()
    again, other = random_neurons(found, 0.25, 0), random_neurons(found, 0.25, 1)
    assert all(map(torch.equal, again, random_neurons(found, 0.25, 0)))
    assert not all(map(torch.equal, again, other)) and len(set(again[0].tolist())) == 36


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 0.99])
def test_shares_that_leave_nothing_are_refused(sparsity: float) -> None:
    with pytest.raises(StrategyError):
        neurons_left(48, sparsity)


def test_nine_tenths_of_ten_leave_one() -> None:
    assert neurons_left(10, 0.9) == 1 and neurons_left(1536, 0.25) == 1152
