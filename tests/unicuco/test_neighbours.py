"""Proposals of spaces in which sites are kept or dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unicuco.baselines.made_up import MadeUpOracle
from tests.unicuco.synthetic import KnownDamage, make_learner, make_space
from unicuco.baselines.knapsack import knapsack
from unicuco.evaluations import Candidate, Evaluation
from unicuco.neighbours import PER_SIZE, around, neighbours
from unicuco.proposals import first_design, strategy_key
from unicuco.request import Request
from unicuco.space import SearchSpace
from unicuco.surrogate import Surrogate

SPACE = make_space(8, sites="block", pruner="depth")
MODEL = KnownDamage(SPACE)


class Interacting(KnownDamage):
    """Damages that do not add up: neighbouring sites cost more together, by ``MadeUpOracle``'s law."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed)
        self.oracle = MadeUpOracle(space, 1e9, seed, num_windows=1, interaction=1.0)

    def kl(self, levels: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
        """The oracle's, on all draws alike: this model has no luck of windows, so ``truth`` is the same everywhere."""
        return np.array([self.oracle.truth(row) for row in np.atleast_2d(levels)])


def measured(model: KnownDamage, rows: np.ndarray) -> list[Evaluation]:
    return [model.evaluation(Candidate(f"{i:03d}", tuple(row.tolist()), "x")) for i, row in enumerate(rows)]


def test_around_is_one_site_or_one_swap_away() -> None:
    row = np.array([[0, 1, 1, 0, 0]])
    found = around(row)
    away = (found != row).sum(axis=1)
    assert (away == 1).sum() == 5 and (away == 2).sum() == 6 and len(found) == 11
    assert (found[away == 2].sum(axis=1) == 2).all(), "a swap changes the size"
    assert len({strategy_key(r) for r in around(np.array([[0, 1, 1], [1, 0, 1]]))}) == len(
        around(np.array([[0, 1, 1], [1, 0, 1]]))
    )


def test_neighbours_are_new_near_the_front_and_few_of_each_size() -> None:
    rng = np.random.default_rng(0)
    rows = np.unique((rng.random((30, 8)) < rng.uniform(0.1, 0.6, (30, 1))).astype(int), axis=0)
    done = measured(MODEL, rows)
    surrogate = Surrogate(SPACE, MODEL.table).fit(rows, MODEL.kl(rows))
    taken = {strategy_key(row) for row in rows}
    found = neighbours(SPACE, surrogate, done, 0.4, 1.0, taken, torch.Generator().manual_seed(0))
    levels = np.array([row for row, _ in found])
    SPACE.check_levels(levels)
    assert found and not {strategy_key(row) for row in levels} & taken and levels.any(axis=1).all()
    assert max(np.unique(levels.sum(axis=1), return_counts=True)[1]) <= PER_SIZE
    assert (SPACE.kept(levels) >= 0.39).all()


def test_where_sites_have_more_levels_there_are_none() -> None:
    space = make_space(4)
    model = KnownDamage(space)
    rows = np.array([row for row, _ in first_design(space, model.table, 12, 0.4, np.random.default_rng(0))])
    surrogate = Surrogate(space, model.table).fit(rows, model.kl(rows))
    assert not neighbours(space, surrogate, measured(model, rows), 0.4, 1.0, set(), torch.Generator())


@pytest.mark.parametrize(("count", "singles"), [(40, 8), (9, 8), (8, 0)])
def test_single_drops_come_first_where_there_is_room(count: int, singles: int) -> None:
    origins = [origin for _, origin in first_design(SPACE, MODEL.table, count, 0.4, np.random.default_rng(0))]
    assert origins[0] == "uniform" and origins.count("uniform") == 1
    assert origins.count("single") == singles


def test_interactions_are_found_where_additive_damages_lead_astray(tmp_path: Path) -> None:
    """On a budget of three times the sites, better than the exact program over single drops, and near the optimum."""
    sizes, ratios, optimum = (0.8, 0.6), [], []
    space = make_space(12, sites="block", pruner="depth")
    every = np.array(list(np.ndindex(*(2,) * 12)))
    for seed in (0, 1):
        model = Interacting(space, seed)
        learner = make_learner(tmp_path / str(seed), model, evaluations=36)
        while not learner.finished():
            if learner.needs_training():
                learner.train()
            for candidate in learner.ask(2):
                learner.tell(model.evaluation(candidate))
        answers = learner.policy().answer([Request(kept=kept) for kept in sizes])
        found = model.kl(np.array([answer.levels for answer in answers]))
        rival = knapsack(MadeUpOracle(space, 36, seed, 1, interaction=1.0), sizes, 36, np.random.default_rng(0))
        truth = model.kl(every)
        best = np.array([truth[space.kept(every) <= kept + 1e-9].min() for kept in sizes])
        ratios.append(found / model.kl(rival))
        optimum.append(found / best)
    assert np.exp(np.log(ratios).mean()) <= 1.0 and np.max(optimum) < 1.1
