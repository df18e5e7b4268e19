"""The learner on a base model that is only a formula: it resumes, survives failures, and learns."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unicuco.small_search import FAST, MODEL, SPACE, balanced, learner
from tests.unicuco.synthetic import FAST_NET, KnownDamage, make_learner, make_space, search
from unicuco.allocation import allocate
from unicuco.baselines.uniform import LADDER, uniform
from unicuco.errors import DiskFullError, SpaceError
from unicuco.evaluations import EvaluationLog
from unicuco.learner import Learner, LearnerConfig
from unicuco.request import Request
from unicuco.space import budgets_of
from unicuco.surrogate import SurrogateConfig

PLAIN = SurrogateConfig(mean="plain")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A search that ran to its end."""
    return search(learner(tmp_path_factory.mktemp("log")), MODEL)


def test_a_search_ends_with_everything_on_disk_once(finished: Learner) -> None:
    status, log = finished.status(), EvaluationLog(finished.log.folder).read()
    assert balanced(status) and (status.done, status.spent, status.running) == (24, 24, 0) and finished.finished()
    assert finished.ask(5) == [] and not finished.needs_training()
    assert len({e.eval_id for e in log}) == len({e.levels for e in log}) == 24
    assert status.version >= 2 and status.hypervolume > 0
    assert {e.eval_id: e.kl for e in log} == {e.eval_id: e.kl for e in finished.evaluations()}


def test_the_front_is_what_no_evaluation_dominates(finished: Learner) -> None:
    front = finished.status().front
    points = [(e.kept, e.kl) for e in finished.evaluations()]
    assert front == sorted(front) and set(front) <= set(points)
    for kept, kl in points:
        assert any(k <= kept and v <= kl for k, v in front)


def test_the_seed_decides_everything(finished: Learner, tmp_path: Path) -> None:
    again = search(learner(tmp_path / "again"), MODEL)
    assert [e.levels for e in again.evaluations()] == [e.levels for e in finished.evaluations()]
    requests = [Request(kept=0.7), Request(preference=(1, 2)), Request(max_kl=0.1)]
    assert again.policy().answer(requests) == finished.policy().answer(requests)
    first, other = learner(tmp_path / "first").ask(24), learner(tmp_path / "other", seed=6).ask(24)
    assert [c.levels for c in first] != [c.levels for c in other]


def test_hypervolume_grows_with_the_front(finished: Learner, tmp_path: Path) -> None:
    again, grown = learner(tmp_path), [0.0]
    for evaluation in finished.evaluations():
        again.tell(evaluation)
        grown.append(again.status().hypervolume)
    assert grown == sorted(grown) and grown[-1] == finished.status().hypervolume > 0


@pytest.mark.parametrize("told", [11, 24])
def test_a_killed_search_resumes_with_the_same_set(told: int, tmp_path: Path) -> None:
    first = learner(tmp_path)
    while first.status().done < told:
        if first.needs_training():
            first.train()
        for candidate in first.ask(2)[: told - first.status().done]:  # one may stay in flight
            first.tell(MODEL.evaluation(candidate))
    before = {e.eval_id: e.levels for e in first.evaluations()}
    assert len(before) == told
    again = learner(tmp_path)
    assert {e.eval_id: e.levels for e in again.evaluations()} == before
    assert balanced(again.status()) and (again.status().done, again.status().running) == (told, 0)
    search(again, MODEL)
    log = EvaluationLog(tmp_path).read()
    assert len(log) == len({e.eval_id for e in log}) == len({e.levels for e in log}) == 24
    assert before.items() <= {e.eval_id: e.levels for e in log}.items()
    assert again.policy().answer([Request(kept=0.7)])[0].feasible


def test_what_could_not_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = learner(tmp_path)
    candidates = found.ask(3)
    told = [MODEL.evaluation(candidate) for candidate in candidates]

    def full(*args: Any) -> None:
        raise DiskFullError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr("unicuco.evaluations.write_evaluations", full)
        with pytest.raises(DiskFullError):
            found.tell(*told)
    assert (found.status().done, found.status().running) == (0, 3)
    assert found.tell(*told, told[0]) == 3 and found.tell(*told) == 0
    assert (found.status().done, found.status().running) == (3, 0)
    assert [e.eval_id for e in found.evaluations()] == [candidate.eval_id for candidate in candidates]


def test_asking_and_telling_take_milliseconds_while_it_trains(tmp_path: Path) -> None:
    found = learner(tmp_path, evaluations=400, stratnet=FAST_NET.model_copy(update={"steps": 150}))
    for candidate in found.ask(20):
        found.tell(MODEL.evaluation(candidate))
    thread = threading.Thread(target=found.train)
    thread.start()
    asks: list[float] = []
    tells: list[float] = []
    while thread.is_alive() and len(asks) < 300:
        began = time.perf_counter()
        (candidate,) = found.ask(1)
        asks.append(time.perf_counter() - began)
        began = time.perf_counter()
        found.tell(MODEL.evaluation(candidate))
        tells.append(time.perf_counter() - began)
        assert balanced(found.status())
        time.sleep(0.005)
    thread.join()
    assert len(asks) > 10, "it trained too fast to tell"
    assert statistics.median(asks) < 0.05 and statistics.median(tells) < 0.1
    status = found.status()
    assert status.version == 1 and status.done == 20 + len(asks) and balanced(status)
    assert len({e.levels for e in found.evaluations()}) == status.done


def test_a_space_smaller_than_the_budget_is_searched_once_through(tmp_path: Path) -> None:
    space = make_space(2, pruner="depth")
    model = KnownDamage(space)
    found = search(make_learner(tmp_path, model, **FAST | {"evaluations": 40}), model)
    assert sorted(e.levels for e in found.evaluations()) == sorted(np.ndindex(2, 2, 2, 2))


def test_the_rest_of_the_first_design_goes_before_what_an_early_training_proposes(tmp_path: Path) -> None:
    design = [c.levels for c in learner(tmp_path / "a", first=12).ask(12)]
    found = learner(tmp_path / "b", first=12)
    for candidate in found.ask(9):
        found.tell(MODEL.evaluation(candidate))
    found.train()
    after = found.ask(4)
    assert [c.levels for c in after[:3]] == design[9:]
    assert after[3].levels not in design and np.isfinite(after[3].predicted_log_kl)


def test_what_is_in_flight_is_not_proposed_again(tmp_path: Path) -> None:
    space = make_space(2, pruner="depth")
    found = make_learner(tmp_path, KnownDamage(space), **FAST)
    assert sorted(c.levels for c in found.ask(40)) == sorted(np.ndindex(2, 2, 2, 2)) and found.ask(1) == []


def test_a_search_in_which_everything_fails_ends(tmp_path: Path) -> None:
    found = learner(tmp_path)
    while candidates := found.ask(5):
        for candidate in candidates:
            found.give_up(candidate, "no evaluator survives it")
    assert found.status().failed == 24 and found.finished() and not found.needs_training()


def test_failures_leave_a_policy_of_the_rest(tmp_path: Path) -> None:
    found = learner(tmp_path)
    while not found.finished():
        if found.needs_training():
            found.train()
        for i, candidate in enumerate(found.ask(4)):
            if i == 3:
                found.give_up(candidate, "poison")
            else:
                found.tell(MODEL.evaluation(candidate))
    status = found.status()
    assert status.failed >= 5 and status.done + status.failed == 24
    assert found.policy().answer([Request(kept=0.7)])[0].feasible


def test_broken_measurements_do_not_stop_the_search(tmp_path: Path) -> None:
    """A strategy whose KL is not a number, or none, or infinite, is known and otherwise ignored."""
    import dataclasses

    found, strange = learner(tmp_path), iter([float("nan"), 0.0, float("inf"), float("nan")])
    while not found.finished():
        if found.needs_training():
            found.train()
            continue
        for candidate in found.ask(3):
            evaluation = MODEL.evaluation(candidate)
            if candidate.eval_id in ("000003", "000007", "000009", "000015"):
                evaluation = dataclasses.replace(evaluation, kl=next(strange))
            found.tell(evaluation)
    (answer,) = found.policy().answer([Request(kept=0.7)])
    assert answer.feasible and 0 < answer.kl < 1


@pytest.mark.parametrize(
    "config",
    [{"sites": "block"}, {"pruner": "depth"}, {"sites": "block", "pruner": "depth"}, {"drop": False}],
    ids=["narrower blocks", "sublayers", "blocks", "width"],
)
def test_every_space_can_be_searched(config: dict[str, Any], tmp_path: Path) -> None:
    space = make_space(5, **config)
    model = KnownDamage(space)
    found = search(make_learner(tmp_path, model, **FAST), model)
    assert found.status().done == min(24, np.prod(space.num_levels))
    answer, below = found.policy().answer([Request(kept=0.6), Request(kept=0.05)])
    assert answer.kept <= 0.6 and answer.feasible
    assert below.feasible == (space.config.drop and below.kept <= 0.05)
    if not space.config.drop:
        assert all(answer.groups) and all(answer.neurons), "a sublayer is gone"
        assert "in the smallest strategy" in below.note and below.levels == space.smallest.tolist()


def test_a_space_that_cannot_get_as_small_as_the_search_is_refused(tmp_path: Path) -> None:
    space = make_space(4, drop=False)
    with pytest.raises(SpaceError, match=r"learner\.kept_low is 0\.1"):
        make_learner(tmp_path, KnownDamage(space), kept_low=0.1)


def test_the_policy_beats_uniform_pruning_and_nears_the_optimum(tmp_path: Path) -> None:
    space = make_space(6)
    model = KnownDamage(space)
    policy = search(make_learner(tmp_path, model, evaluations=40), model).policy()
    kept = np.array(LADDER)
    answers = policy.answer([Request(kept=float(k)) for k in kept])
    found = model.kl(np.array([answer.levels for answer in answers]))
    alike = np.array([min(model.kl(uniform(space, k, m))[0] for m in (True, False)) for k in kept])
    best = model.kl(allocate(space, model.truth, budgets_of(space, kept)))
    prior = model.kl(allocate(space, model.table, budgets_of(space, kept)))
    assert (found < alike).all() and found.sum() < prior.sum() and np.mean(found / best) < 1.05


def test_the_plain_form_runs_and_beats_its_own_first_points(tmp_path: Path) -> None:
    """The paper's surrogate, without a preparation's damage table."""
    config = LearnerConfig.model_validate(FAST | {"evaluations": 40, "surrogate": PLAIN})
    found = search(Learner(SPACE, None, config, EvaluationLog(tmp_path)), MODEL)
    assert found.status().done == 40
    origins = {e.origin for e in found.evaluations()}
    assert "random" in origins and not origins & {"prior", "thompson"}
    answers = found.policy().answer([Request(kept=float(k)) for k in LADDER])
    assert all(a.kept <= k for a, k in zip(answers, LADDER, strict=True))


def test_optimism_and_sizes_stay_within_their_limits() -> None:
    for wrong in ({"evaluations": 3}, {"kept_low": 0.0}, {"kept_low": 0.99}, {"batch": 0}, {"optimism": -1}, {"x": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LearnerConfig.model_validate(wrong)
    assert LearnerConfig(evaluations=10).first_count(True) <= 10
