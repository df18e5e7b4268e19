"""Surrogates of several domains: each learns its own law, and allocations follow the shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unicuco.synthetic import KnownDomains, make_space
from unicuco.allocation import allocate
from unicuco.evaluations import Candidate
from unicuco.proposals import first_design
from unicuco.qualities import MEAN, Qualities, objective_domains
from unicuco.space import budgets_of
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

SPACE = make_space(4)
MODEL = KnownDomains(SPACE, seed=2)
LEVELS = np.array([row for row, _ in first_design(SPACE, MODEL.table, 60, 0.4, np.random.default_rng(0))])
CONFIG = SurrogateConfig()


@pytest.fixture(scope="module")
def qualities() -> Qualities:
    return Qualities.of_domains(SPACE, MODEL.table, CONFIG, MODEL.names, LEVELS, MODEL.domain_kl(LEVELS))


def test_each_domain_is_predicted_by_its_own_law(qualities: Qualities) -> None:
    fresh = np.array([row for row, _ in first_design(SPACE, MODEL.table, 60, 0.4, np.random.default_rng(1))][30:])
    with torch.no_grad():
        mean, deviation = qualities.predict(torch.as_tensor(SPACE.sparsities(fresh)))
    assert mean.shape == deviation.shape == (len(fresh), 2) and (deviation > 0).all()
    error = mean.numpy() - np.log(MODEL.domain_kl(fresh))
    assert np.sqrt((error**2).mean(axis=0)).max() < 0.3
    swapped = mean.numpy() - np.log(MODEL.domain_kl(fresh))[:, ::-1]
    assert (error**2).mean() < 0.2 * (swapped**2).mean()


def test_allocations_follow_the_shares_and_fit_their_size(qualities: Qualities) -> None:
    shares = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    for kept in (0.5, 0.7):
        sizes = np.full(3, kept)
        levels = qualities.allocate(sizes, shares, np.ones(2))
        assert (SPACE.total(levels) <= budgets_of(SPACE, sizes)).all()
        code, prose = MODEL.domain_kl(levels).T
        assert code[0] <= code[1] <= code[2] and prose[0] >= prose[1] >= prose[2]
        assert code[0] < 0.9 * code[2] and prose[2] < 0.9 * prose[0]
        best = MODEL.domain_kl(allocate(SPACE, MODEL.truths[0], budgets_of(SPACE, sizes)))[0, 0]
        assert code[0] < 1.15 * best


def test_drawn_tables_differ_and_repeat_with_their_seed(qualities: Qualities) -> None:
    sizes, shares = np.linspace(0.45, 0.9, 12), np.full((12, 2), 0.5)
    one, same, other = (
        qualities.allocate(sizes, shares, np.ones(2), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_one_quality_is_todays_allocation() -> None:
    surrogate = Surrogate(SPACE, MODEL.table).fit(LEVELS, MODEL.domain_kl(LEVELS).mean(axis=1))
    sizes = np.linspace(0.45, 0.9, 8)
    found = Qualities.of_mean(surrogate).allocate(sizes, np.ones((8, 1)), np.ones(1))
    np.testing.assert_array_equal(found, allocate(SPACE, surrogate.tables(sizes), budgets_of(SPACE, sizes)))


def test_states_come_back_as_they_were(qualities: Qualities) -> None:
    again = Qualities.from_state(SPACE, MODEL.table, CONFIG, MODEL.names, qualities.state())
    x = torch.as_tensor(SPACE.sparsities(LEVELS[:5]))
    for one, two in zip(qualities.predict(x), again.predict(x), strict=True):
        torch.testing.assert_close(one, two)


def test_measured_reads_the_domains_that_it_knows(qualities: Qualities) -> None:
    own = MODEL.evaluation(Candidate("0", tuple(LEVELS[5].tolist()), "x"))
    foreign = KnownDomains(SPACE, ("a", "b")).evaluation(Candidate("1", tuple(LEVELS[6].tolist()), "x"))
    found = qualities.measured([own, foreign])
    np.testing.assert_allclose(found[0], np.log(MODEL.domain_kl(LEVELS[5])[0] + NOISE_FLOOR))
    assert np.isnan(found[1]).all()
    mean = Qualities((MEAN,), qualities.surrogates[:1]).measured([own, foreign])
    np.testing.assert_allclose(mean[:, 0], np.log(np.array([own.kl, foreign.kl]) + NOISE_FLOOR))


def test_which_domains_are_objectives() -> None:
    five = ("a", "b", "c", "d", "e")
    assert objective_domains("auto", ("sotu",)) == objective_domains("domains", ("sotu",)) == ()
    assert objective_domains("auto", five[:2]) == five[:2] and objective_domains("auto", five) == ()
    assert objective_domains("domains", five) == five and objective_domains("mean", five[:2]) == ()
