"""Margins in a search: what they cost, where they are asked for, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from unicuco.allocation import allocate
from unicuco.evaluations import MARGINS_COST, EvaluationLog
from unicuco.learner import Learner
from unicuco.slopes import read_slopes
from unicuco.space import budgets_of
from unicuco.surrogate import Surrogate

SPACE = make_space(6)
MODEL = KnownDamage(SPACE, seed=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return search(make_learner(tmp_path_factory.mktemp("log"), MODEL, margin_groups=3, evaluations=60), MODEL)


def with_margins(learner: Learner) -> list:
    return [e for e in learner.evaluations() if e.margin_group >= 0]


def test_margins_are_paid_from_the_same_budget(finished: Learner) -> None:
    status, bases = finished.status(), with_margins(finished)
    assert status.spent == status.done + MARGINS_COST * len(bases)
    assert 60 - (1 + MARGINS_COST) < status.spent <= 60
    assert len(bases) >= 3 and MARGINS_COST * len(bases) <= finished.config.margins * 60


def test_they_are_spread_over_sizes_and_windows(finished: Learner) -> None:
    bases = with_margins(finished)
    kept = sorted(e.kept for e in bases)
    assert kept[0] < 0.65 and kept[-1] > 0.7 and np.diff(kept).max() < 0.4
    assert {e.margin_group for e in bases} == set(range(min(3, len(bases))))
    assert all(len(e.margins) == SPACE.levels.size for e in bases)
    assert all(e.margins == () for e in finished.evaluations() if e.margin_group < 0)


def test_a_resumed_search_knows_what_its_margins_cost(finished: Learner, tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path)
    for evaluation in finished.evaluations()[:20]:
        log.append(evaluation)
    again = make_learner(tmp_path, MODEL, margin_groups=3, evaluations=60)
    assert again.status().spent == sum(e.evaluations for e in log.read())
    assert search(again, MODEL).status().spent <= 60
    read = {e.eval_id: np.float32(e.margins) for e in EvaluationLog(tmp_path).read()}
    for evaluation in again.evaluations():
        np.testing.assert_array_equal(read[evaluation.eval_id], np.float32(evaluation.margins))


@pytest.mark.parametrize("config", [{"margins": 0.0}, {"surrogate": {"mean": "plain"}}], ids=["off", "plain"])
def test_none_are_asked_for_where_nobody_learns_from_them(config: dict, tmp_path: Path) -> None:
    learner = make_learner(tmp_path, MODEL, margin_groups=3, evaluations=20, **config)
    assert all(candidate.margin_group < 0 for candidate in learner.ask(20))


def test_none_are_asked_for_where_sites_are_kept_or_dropped(tmp_path: Path) -> None:
    """Such a site has no level on one of its sides, so nothing would be read from them."""
    model = KnownDamage(make_space(10, pruner="depth"))
    learner = make_learner(tmp_path, model, margin_groups=3, evaluations=20)
    assert all(candidate.margin_group < 0 for candidate in learner.ask(20))


def test_where_windows_differ_margins_earn_more_than_they_cost(tmp_path: Path) -> None:
    """Evaluations share the search windows' peculiarities; margins see other windows, and answers are for all text."""
    model = KnownDamage(SPACE, seed=3, spread=0.4, luck=0.35)
    sizes = np.linspace(0.5, 0.9, 9)
    budgets = budgets_of(SPACE, sizes)
    best = np.log(model.kl(allocate(SPACE, model.truth, budgets))).mean()
    regret = []
    for groups in (12, 0):
        learner = search(make_learner(tmp_path / str(groups), model, margin_groups=groups, evaluations=60), model)
        levels = allocate(SPACE, learner.policy().parts.surrogate.tables(sizes), budgets)
        regret.append(np.log(model.kl(levels)).mean() - best)
    assert regret[0] < 0.6 * regret[1]


def test_what_comes_next_is_predicted_with_the_luck_of_the_search_windows(tmp_path: Path) -> None:
    """From the first part of a search, its later evaluations: as the windows have them, and as all text has them."""
    model = KnownDamage(SPACE, seed=4, spread=0.4, luck=0.35)
    done = search(make_learner(tmp_path, model, margin_groups=12, evaluations=100), model).evaluations()
    done = [e for e in done if any(e.levels)]
    levels, kl, first = np.array([e.levels for e in done]), np.array([e.kl for e in done]), len(done) * 6 // 10
    slopes = read_slopes(SPACE, done[:first])
    surrogate = Surrogate(SPACE, model.table).fit(levels[:first], kl[:first], slopes)
    later = torch.as_tensor(SPACE.sparsities(levels[first:]))
    errors, spread = {}, {}
    with torch.no_grad():
        for there in (True, False):
            mean, deviation = (v.numpy() for v in surrogate.predict(later, on_search_windows=there))
            errors[there] = np.log(kl[first:]) - mean
            spread[there] = np.sqrt(deviation**2 + surrogate.noise_std**2)
            truth = np.log(model.kl(levels[first:]))
            errors[there, "text"] = truth - mean
    size = {key: np.sqrt(np.mean(error**2)) for key, error in errors.items()}
    assert size[True] < size[False] / 2 and size[False, "text"] < size[True, "text"]
    assert (spread[True] < spread[False] / 2).all()
    assert np.sqrt(np.mean((errors[True] / spread[True]) ** 2)) < 1.5
