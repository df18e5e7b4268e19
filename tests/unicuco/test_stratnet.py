"""StratNet learns a front that is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.allocation import allocate
from unicuco.costs import Costs
from unicuco.objectives import Scale, site_shares, tchebycheff
from unicuco.proposals import budgets_of, first_design, make_teachers, uniform
from unicuco.qualities import Qualities
from unicuco.stratnet import (
    StratNet,
    StratNetConfig,
    balanced_preference,
    draw_preferences,
    spread_preferences,
    train_stratnet,
)
from unicuco.surrogate import Surrogate

SPACE = make_space(4)
MODEL = KnownDamage(SPACE, seed=2)
CONFIG = StratNetConfig(width=64, steps=300)
COSTS = Costs(SPACE)
SHARES = torch.as_tensor(site_shares(SPACE))


@pytest.fixture(scope="module")
def qualities() -> Qualities:
    levels = np.array([p for p, _ in first_design(SPACE, MODEL.table, 50, 0.4, np.random.default_rng(0))])
    return Qualities.of_mean(Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels)))


@pytest.fixture(scope="module")
def scale() -> Scale:
    ends = allocate(SPACE, MODEL.truth, budgets_of(SPACE, np.array([0.97, 0.4])))
    low, high = np.log(MODEL.kl(ends))
    return Scale(0.4, (float(low),), (float(high),))


def fresh() -> StratNet:
    torch.manual_seed(0)
    return StratNet(2, SPACE.num_sites, CONFIG.width)


def train(qualities: Qualities, scale: Scale, net: StratNet | None = None, **changes: object) -> tuple[StratNet, float]:
    config = CONFIG.model_copy(update=changes)
    generator = torch.Generator().manual_seed(0)
    teachers = make_teachers(COSTS, qualities, scale, generator) if config.teaching else None
    return train_stratnet(net or fresh(), qualities, COSTS, scale, teachers, config, generator)


def answers(net: StratNet, kept: np.ndarray) -> np.ndarray:
    """The net's strategies for sizes: the preference whose answer has the size, projected on it."""
    weight = torch.linspace(0.002, 0.998, 200, dtype=torch.float64)
    with torch.no_grad():
        strategies = net(torch.stack([weight, 1 - weight], -1))
        sizes = 1 - strategies @ SHARES
    chosen = [int((sizes - k).abs().argmin()) for k in kept]
    return SPACE.project(strategies[chosen].numpy(), {"params": budgets_of(SPACE, kept)})


def test_it_learns_a_known_front(qualities: Qualities, scale: Scale) -> None:
    net, _ = train(qualities, scale)
    kept = np.linspace(0.45, 0.9, 10)
    found = MODEL.kl(answers(net, kept))
    best = MODEL.kl(allocate(SPACE, MODEL.truth, budgets_of(SPACE, kept)))
    alike = np.array([min(MODEL.kl(uniform(SPACE, k, m))[0] for m in (True, False)) for k in kept])
    assert np.mean(found / best) < 1.05
    assert (found < alike).mean() >= 0.8 and found.sum() < 0.9 * alike.sum()


def test_without_teachers_it_still_learns(qualities: Qualities, scale: Scale) -> None:
    """The paper's form: only the Tchebycheff value through the surrogate."""
    kept = np.linspace(0.5, 0.9, 8)
    net, _ = train(qualities, scale, teaching=0.0)
    best = MODEL.kl(allocate(SPACE, MODEL.truth, budgets_of(SPACE, kept)))
    assert MODEL.kl(answers(net, kept)).sum() < 1.15 * best.sum() < MODEL.kl(answers(fresh(), kept)).sum()


def test_heavier_weights_on_size_give_smaller_models(qualities: Qualities, scale: Scale) -> None:
    net, _ = train(qualities, scale)
    weight = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    with torch.no_grad():
        kept = 1 - net(torch.stack([weight, 1 - weight], -1)) @ SHARES
    assert (kept.diff() < 0.02).all() and kept[0] > 0.9 and kept[-1] < 0.5


def test_training_lowers_the_loss_and_leaves_the_given_net_alone(qualities: Qualities, scale: Scale) -> None:
    net = fresh()
    before = [p.clone() for p in net.parameters()]
    trained, after_long = train(qualities, scale, net)
    _, after_short = train(qualities, scale, net, steps=5)
    assert after_long < 0.7 * after_short
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    _, warm = train(qualities, scale, trained, steps=5)
    assert warm < after_short, "a warm start begins where the last training ended"


def test_training_is_reproducible(qualities: Qualities, scale: Scale) -> None:
    one, two = train(qualities, scale, steps=20), train(qualities, scale, steps=20)
    assert one[1] == two[1]
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))


def test_strategies_are_between_keeping_and_dropping() -> None:
    preference = draw_preferences(100, torch.Generator().manual_seed(0))
    strategies = fresh()(preference)
    assert strategies.shape == (100, SPACE.num_sites) and ((strategies > 0) & (strategies < 1)).all()


@pytest.mark.parametrize("objectives", [2, 3])
def test_preferences_are_uniform_on_the_simplex(objectives: int) -> None:
    drawn = draw_preferences(20_000, torch.Generator().manual_seed(0), objectives)
    assert (drawn >= 0).all()
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20_000, dtype=torch.float64))
    # Dirichlet(1, ..., 1): mean 1/m and P(first > 1/2) = 2^(1-m).
    assert drawn.mean(0).sub(1 / objectives).abs().max() < 0.01
    assert abs((drawn[:, 0] > 0.5).double().mean() - 0.5 ** (objectives - 1)) < 0.015


def test_the_balanced_preference_is_where_the_point_is_optimal() -> None:
    """On the front f₂ = 1 − f₁, the point is the Tchebycheff optimum at its balanced preference."""
    first = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    line = torch.stack([first, 1 - first], -1)
    alone = torch.ones(19, 1, dtype=torch.float64)
    for i, preference in enumerate(balanced_preference(line, alone, alone)):
        assert int(tchebycheff(preference.expand(19, 2), line, 0.0).argmin()) == i


def test_strategies_stay_within_what_sites_can_lose() -> None:
    deepest = torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64)
    net = StratNet(2, 3, 8, deepest)
    net.layers[-1].bias.data.fill_(50.0)
    answer = net(torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(answer, deepest[None])
    assert "deepest" not in net.state_dict(), "policies from before it would no longer load"


def test_with_several_qualities_the_shares_stay_and_size_is_balanced() -> None:
    shares = draw_preferences(50, torch.Generator().manual_seed(0), 3)
    values = torch.rand(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.01
    preference = balanced_preference(values, torch.ones(50, 1, dtype=torch.float64), shares)
    torch.testing.assert_close(preference.sum(-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(preference[:, 1:] / preference[:, 1:].sum(-1, keepdim=True), shares)
    weighted = preference * values
    torch.testing.assert_close(weighted[:, 0], weighted[:, 1:].sum(-1))


def test_with_several_costs_their_shares_stay_and_both_sides_balance() -> None:
    of_costs, shares = (draw_preferences(50, torch.Generator().manual_seed(seed), 2) for seed in (0, 1))
    values = torch.rand(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.01
    preference = balanced_preference(values, of_costs, shares)
    torch.testing.assert_close(preference[:, :2] / preference[:, :2].sum(-1, keepdim=True), of_costs)
    torch.testing.assert_close(preference[:, 2:] / preference[:, 2:].sum(-1, keepdim=True), shares)
    weighted = preference * values
    torch.testing.assert_close(weighted[:, :2].sum(-1), weighted[:, 2:].sum(-1))


def test_training_preferences_reach_small_models_whatever_the_number_of_qualities() -> None:
    for objectives in (2, 3, 5):
        drawn = spread_preferences(4000, torch.Generator().manual_seed(0), objectives)
        assert drawn.shape == (4000, objectives) and (drawn >= 0).all()
        torch.testing.assert_close(drawn.sum(-1), torch.ones(4000, dtype=torch.float64))
        assert abs((drawn[:, 0] > 0.5).double().mean() - 0.5) < 0.03


def test_shares_still_count_where_size_is_nearly_everything() -> None:
    torch.manual_seed(0)
    net = StratNet(3, SPACE.num_sites, 64)
    small = torch.tensor([[0.999, 0.001, 0.0], [0.999, 0.0, 0.001], [1.0, 0.0, 0.0]], dtype=torch.float64)
    one, other, none = net(small)
    assert (one - other).abs().max() > 0.01 and torch.isfinite(none).all()


@pytest.mark.parametrize(("num_objectives", "num_costs"), [(2, 1), (4, 1), (3, 2), (4, 2)])
def test_arrays_get_the_same_answers_as_tensors(num_objectives: int, num_costs: int) -> None:
    torch.manual_seed(0)
    deepest = torch.linspace(0.5, 1.0, SPACE.num_sites, dtype=torch.float64)
    net = StratNet(num_objectives, SPACE.num_sites, width=16, deepest=deepest, num_costs=num_costs).eval()
    preference = spread_preferences(40, torch.Generator().manual_seed(0), num_objectives, num_costs)
    corners = torch.eye(num_objectives, dtype=torch.float64)  # size alone: shares of nothing
    asked = torch.cat([preference, corners])
    with torch.no_grad():
        np.testing.assert_allclose(net.on_arrays()(asked.numpy()), net(asked).numpy(), rtol=1e-12)
