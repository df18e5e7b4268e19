"""How far KL varies between draws of windows, where it is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.evaluations import Candidate, Evaluation
from unicuco.sampling import Z90, sampling, t90

MODEL = KnownDamage(make_space(2), seed=0)
SIGMA = 0.3
"""Of log KL between single windows."""


def evaluations(rng: np.random.Generator, windows: int, groups: int, bases: int = 2) -> list[Evaluation]:
    """A search on ``windows`` windows whose difficulty is the same for all strategies, and margins on other groups."""
    groups_or_one = max(groups, 1)
    search = np.exp(rng.normal(0, SIGMA, windows))
    elsewhere = np.exp(rng.normal(0, SIGMA, (groups, windows))).mean(axis=1)
    plain = MODEL.evaluation(Candidate("0", (1,) * MODEL.space.num_sites, "made-up"))
    found = []
    for i in range(max(bases * groups, 5)):
        kl = 0.1 + 0.05 * i
        with_margins = i < bases * groups
        found.append(
            replace(
                plain,
                eval_id=str(i),
                kl=float(kl * search.mean()),
                window_kl=tuple(kl * search),
                margin_group=i % groups_or_one if with_margins else -1,
                margins_kl=float(kl * elsewhere[i % groups_or_one]) if with_margins else np.nan,
            )
        )
    return found


@pytest.mark.parametrize(("windows", "groups"), [(4, 4), (4, 0), (8, 2), (4, 24)])
def test_intervals_made_of_it_hold_as_often_as_they_say(windows: int, groups: int) -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(3000):
        done = evaluations(rng, windows, groups)
        fresh = np.exp(rng.normal(0, SIGMA, windows)).mean()
        found = sampling(done, np.array([0.7]))
        gap = np.log(fresh) - np.log(np.mean(done[0].window_kl) / 0.1) - found.shift[0]
        inside.append(abs(gap) <= Z90 * np.sqrt(found.variance[0]))
    assert 0.86 < np.mean(inside) < 0.94


def test_nothing_is_known_from_nothing() -> None:
    found = sampling([], np.array([0.5, 0.9]))
    assert (found.variance == 0).all() and (found.shift == 0).all()


def test_many_groups_tell_how_hard_the_search_windows_are() -> None:
    """And then the interval is that of a fresh draw alone, half the variance of a draw against a draw."""
    rng, left, widths = np.random.default_rng(1), [], []
    for _ in range(200):
        done = evaluations(rng, windows=4, groups=24)
        found = sampling(done, np.array([0.7]))
        hard = np.log(np.mean(done[0].window_kl) / 0.1)
        left.append(hard + found.shift[0])
        widths.append(found.variance[0])
    assert np.std(left) < 0.4 * SIGMA / 2
    assert np.mean(widths) < 1.4 * SIGMA**2 / 4


def test_it_grows_where_windows_differ_more() -> None:
    """Twice the spread above kept 0.8, as where little is pruned."""
    plain = MODEL.evaluation(Candidate("0", (1,) * MODEL.space.num_sites, "made-up"))
    found = []
    for i, kept in enumerate(np.linspace(0.4, 1.0, 61)):
        factors = 1 + (0.2 if kept > 0.8 else 0.1) * np.array([-1.0, -0.5, 0.5, 1.0])
        found.append(replace(plain, eval_id=str(i), kept=float(kept), kl=0.5, window_kl=tuple(0.5 * factors)))
    small, large = np.sqrt(sampling(found, np.array([0.5, 0.95])).variance)
    assert large / small == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("freedom", [3, 5, 7, 11, 40])
def test_the_t_distribution_is_near_enough(freedom: int) -> None:
    assert t90(freedom) == pytest.approx(t.ppf(0.95, freedom), rel=0.02)
