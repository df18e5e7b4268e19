"""The made-up model of the ablations: its optimum is one, and its margins are first-order changes."""

import numpy as np
import pytest

from benchmarks.made_up import BLOCKS, MARGIN_GROUPS, MadeUp, make_space
from unicuco.baselines.uniform import uniform
from unicuco.evaluations import Candidate
from unicuco.space import SearchSpace, budgets_of

SIZES = np.array([0.9, 0.7, 0.5])


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return make_space()


def test_the_optimum_fits_and_nobody_near_it_is_better(space: SearchSpace) -> None:
    model, rng = MadeUp(space, 0), np.random.default_rng(0)
    best = model.optimum(SIZES)
    assert (space.kept(best) <= SIZES + 1e-9).all()
    kl, budgets = model.kl(best), budgets_of(space, SIZES)
    for row in range(len(SIZES)):
        near = np.repeat(best[row][None], 4000, axis=0)
        for _ in range(4):
            site = rng.integers(space.num_sites, size=len(near))
            moved = near[np.arange(len(near)), site] + rng.integers(-2, 3, size=len(near))
            near[np.arange(len(near)), site] = moved.clip(0, space.num_levels[site] - 1)
        near = near[space.total(near) <= budgets[row]]
        # The program takes weights at the bound, a strategy has those of its own size: a trifle is left between them.
        assert model.kl(near).min() > kl[row] * (1 - 2e-3)
        assert model.kl(uniform(space, float(SIZES[row]), True)[None])[0] > 1.2 * kl[row]


def test_an_evaluation_is_the_mean_of_windows_and_the_truth_is_none_of_them(space: SearchSpace) -> None:
    model, levels = MadeUp(space, 1), uniform(space, 0.7, False)
    found = model.evaluation(Candidate("3", tuple(int(v) for v in levels), "uniform"))
    assert found.kl == pytest.approx(np.mean(found.window_kl))
    assert np.ptp(found.window_kl) > 0.02 * found.kl
    assert abs(np.log(found.kl / model.kl(levels)[0])) < 0.5
    assert not found.margins


def test_margins_of_giving_back_are_negative_and_stay_there(space: SearchSpace) -> None:
    model, levels = MadeUp(space, 2), uniform(space, 0.6, False)
    candidate = Candidate("3", tuple(int(v) for v in levels), "prior", margin_group=MARGIN_GROUPS - 1)
    found = model.evaluation(candidate)
    assert found == model.evaluation(candidate)
    change = np.reshape(found.margins, space.levels.shape)
    assert (change[np.arange(space.num_sites), levels] == 0).all()
    dense = change[:, 0].reshape(BLOCKS, 2)
    assert (dense.sum(axis=1) < 0).all(), "giving a block back cannot cost anything"
