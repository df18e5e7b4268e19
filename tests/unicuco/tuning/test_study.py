"""The score of a trial on recorded searches of made-up models: it sees no future, and it tells good from bad."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unicuco.synthetic import FAST_NET, KnownDamage, KnownDomains, make_learner, make_space, search
from tests.unicuco.tables import made_up_table
from unicuco.costs import Costs
from unicuco.errors import TuningError
from unicuco.evaluations import Evaluation
from unicuco.latency import NamedTable
from unicuco.learner_config import LearnerConfig
from unicuco.policy import Policy
from unicuco.policy_parts import PolicyParts
from unicuco.stratnet import StratNet, train_stratnet
from unicuco.surrogate import NOISE_FLOOR
from unicuco.tuning.study import FIRST, LATER, RUNGS, Job, Score, Scorer, Study, log_digest
from unicuco.tuning.sweep import Setting

SPACE = make_space(4)
MODEL = KnownDamage(SPACE, seed=3, luck=0.2)
BASE = LearnerConfig(stratnet=FAST_NET.model_copy(update={"width": 32, "steps": 80}))
FULL = len(RUNGS) - 1
CUTS = (0.3, 0.6)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    learner = make_learner(tmp_path_factory.mktemp("log"), MODEL, margin_groups=4, evaluations=72, batch=16)
    return search(learner, MODEL).evaluations()


def study_of(log: Sequence[Evaluation], *settings: Setting, model: KnownDamage = MODEL, base: Any = BASE) -> Study:
    return Study.of_log(model.space, model.table, log, base, [{}, *settings], CUTS)


def same(one: Score, other: Score) -> bool:
    return replace(one, seconds=0.0) == replace(other, seconds=0.0)


def test_bad_settings_score_worse_than_the_default(log: list[Evaluation]) -> None:
    """A network that hardly learns answers badly; a plain surrogate, which knows no damages, predicts badly as well."""
    lame: Setting = {"stratnet.learning_rate": 1e-6, "stratnet.teaching": 0.0}
    scorer = Scorer(study_of(log, lame, {"surrogate.mean": "plain"}))
    default, bad, plain = (scorer.score(Job(setting, FULL, 0)) for setting in range(3))
    assert not default.error + bad.error + plain.error
    assert bad.front > default.front + 0.1 and bad.density == default.density
    assert plain.density < default.density - 0.5 and plain.front > default.front + 0.02
    assert len(default.fronts) == len(default.densities) == len(CUTS)


def test_the_front_is_what_the_truth_says_too(log: list[Evaluation]) -> None:
    """The oracle's ranking of fronts is the ranking by the law itself, which no log shows."""
    scorer = Scorer(study_of(log, {"stratnet.steps": 10}, {"stratnet.steps": 40}))
    truth, oracle = [], []
    for setting in range(3):
        config = scorer.study.config(setting)
        part = scorer._part(config, scorer.study.cuts[-1])
        oracle.append(scorer._front(part.fitted, trained(scorer, part, config)))
        truth.append(true_front(scorer, part, trained(scorer, part, config)))
    assert np.argsort(oracle).tolist() == np.argsort(truth).tolist() == [0, 2, 1]


def trained(scorer: Scorer, part: Any, config: LearnerConfig) -> StratNet:
    net, generator = scorer._new_net(config.stratnet.width, 0), torch.Generator().manual_seed(0)
    fitted = part.fitted
    return train_stratnet(net, fitted.qualities, Costs(SPACE), fitted.scale, part.teachers, config.stratnet, generator)[
        0
    ]


def true_front(scorer: Scorer, part: Any, net: StratNet) -> float:
    parts = PolicyParts(SPACE, MODEL.table, part.fitted.surrogate, net, part.fitted.scale, (), 1)
    levels = np.array([answer.levels for answer in Policy(parts).answer(scorer._requests)])
    return float(np.log(MODEL.kl(levels) + NOISE_FLOOR).mean())


def test_a_trial_does_not_see_the_future(log: list[Evaluation]) -> None:
    """Other later evaluations, in any order, change how a trial is judged and nothing of what it learned."""
    study = study_of(log)
    last = study.cuts[-1]
    later = [replace(e, kl=e.kl * factor, margins=()) for e, factor in zip(study.done[last:], _factors(), strict=False)]
    changed = replace(study, done=(*study.done[:last], *reversed(later)))
    one, other = Scorer(study), Scorer(changed)
    for cut in study.cuts:
        first, second = (scorer._part(BASE, cut) for scorer in (one, other))
        assert _states_agree(first, second)
    assert not np.allclose(one._part(BASE, last).later, other._part(BASE, last).later)
    # Fronts are judged by the oracle, which is the same here: fitted before, and once.
    assert one.score(Job(0, FULL, 0)).fronts == other.score(Job(0, FULL, 0)).fronts
    earlier = replace(study, done=(replace(study.done[0], kl=study.done[0].kl * 1.5), *study.done[1:]))
    assert not _states_agree(one._part(BASE, last), Scorer(earlier)._part(BASE, last))


def _factors() -> np.ndarray:
    return np.exp(np.random.default_rng(0).normal(0, 0.5, 1000))


def _states_agree(one: Any, other: Any) -> bool:
    mine, theirs = one.fitted.surrogate.state(), other.fitted.surrogate.state()
    same_shapes = all(mine[name].shape == theirs[name].shape for name in mine)
    return same_shapes and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_score_is_the_same_whatever_ran_before_and_wherever(log: list[Evaluation]) -> None:
    """Jobs go to any process, in any order; seeds differ."""
    study = study_of(log, {"surrogate.relinearise": 1})
    fresh, used = Scorer(pickle.loads(pickle.dumps(study))), Scorer(study)
    used.score(Job(1, FULL, 5))
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again = used.score(Job(0, 0, 0))
    assert same(again, fresh.score(Job(0, 0, 0)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.score(Job(0, 0, 1)).front != again.front


def test_each_evaluation_counts_once(log: list[Evaluation]) -> None:
    study = study_of(log)
    score = Scorer(study).score(Job(0, 0, 0))
    assert len(score.later) == len(study.done) - study.cuts[0]
    assert score.density == pytest.approx(np.mean(score.later))
    between = study.cuts[1] - study.cuts[0]  # those are later than the first cut alone
    assert score.later[:between] == tuple(Scorer(study)._part(BASE, study.cuts[0]).later[:between])


def test_a_trial_that_breaks_says_why(log: list[Evaluation]) -> None:
    """No step of size 1e300 leaves numbers."""
    scorer = Scorer(study_of(log, {"stratnet.learning_rate": 1e300}))
    broken = scorer.score(Job(1, FULL, 0))
    assert broken.error and np.isnan(broken.front)
    assert not scorer.score(Job(0, 0, 0)).error


def test_domains_are_judged_one_by_one(tmp_path: Path) -> None:
    model = KnownDomains(SPACE, seed=1)
    log = search(make_learner(tmp_path, model, evaluations=20, batch=16), model).evaluations()
    study = study_of(log, {"stratnet.learning_rate": 1e-6, "stratnet.teaching": 0.0}, model=model)
    scorer = Scorer(study)
    assert study.domains == ("code", "prose")
    default, bad = (scorer.score(Job(setting, 1, 0)) for setting in (0, 1))
    assert not default.error and bad.front > default.front + 0.05


def test_settings_of_a_run_with_latency_train_networks_for_it(log: list[Evaluation]) -> None:
    box = NamedTable.of("box", made_up_table(SPACE.geometry, attention=3.0, mlp=0.3))
    lame: Setting = {"stratnet.learning_rate": 1e-6, "stratnet.teaching": 0.0}
    scorer = Scorer(Study.of_log(SPACE, MODEL.table, log, BASE, [{}, lame], CUTS, box))
    assert scorer._new_net(16, 0).num_costs == 2
    default, bad = (scorer.score(Job(setting, FULL, 0)) for setting in (0, 1))
    assert not default.error and bad.front > default.front + 0.1
    assert default.density == Scorer(study_of(log)).score(Job(0, 0, 0)).density, "surrogates are the same"


def test_too_short_a_log_is_refused(log: list[Evaluation]) -> None:
    with pytest.raises(TuningError, match=f"a sweep needs {FIRST + LATER} or more"):
        study_of(log[: FIRST + LATER - 1])
    study = study_of(log[: FIRST + LATER + 1])
    assert all(FIRST <= cut <= len(study.done) - LATER for cut in study.cuts)


def test_the_digest_is_of_the_whole_log(log: list[Evaluation]) -> None:
    assert log_digest(log) == log_digest(list(log)) != log_digest(log[:-1])
    assert log_digest([*log[:-1], replace(log[-1], kl=log[-1].kl + 1e-9)]) != log_digest(log)
