"""Answers within a bound on latency, by made-up tables: never over it, and the best that the surrogate sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, KnownDomains, geometry, make_learner, make_space, search
from tests.unicuco.tables import made_up_table
from unicuco.errors import RequestError
from unicuco.latency import NANOSECONDS, LatencyError
from unicuco.policy import Policy
from unicuco.request import Answer, Request
from unicuco.timed import Timed

SPACE = make_space(5)
TABLE = made_up_table(SPACE.geometry, attention=1.0, mlp=0.5)
TIMED = Timed("box", TABLE, SPACE)
DENSE = int(TIMED.total(np.zeros(SPACE.num_sites, dtype=int))) / NANOSECONDS
FLOOR = TIMED.floor / NANOSECONDS


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = KnownDamage(SPACE, seed=4)
    learner = make_learner(tmp_path_factory.mktemp("log"), model, evaluations=32)
    return Policy(search(learner, model).policy().parts, {"box": TABLE})


@pytest.fixture(scope="module")
def of_domains(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = KnownDomains(SPACE, seed=4)
    learner = make_learner(tmp_path_factory.mktemp("log"), model, evaluations=20)
    return Policy(search(learner, model).policy().parts, {"box": TABLE})


def one(policy: Policy, **request: Any) -> Answer:
    return policy.answer([Request(**request)])[0]


def predicted(policy: Policy, levels: np.ndarray) -> np.ndarray:
    return np.array([prospect.objectives[1] for prospect in policy.prospects(levels, 2)])


limits = st.floats(0.5, 1.05 * DENSE)


@given(st.lists(st.floats(0, 1), min_size=SPACE.num_sites, max_size=SPACE.num_sites), limits, st.floats(0.1, 1))
def test_a_projection_is_never_over_either_limit_and_leaves_no_room(x: list[float], ms: float, share: float) -> None:
    floor = int(SPACE.total(SPACE.smallest))
    bounds = {"params": max(share * SPACE.geometry.params, floor), "latency": max(int(ms * NANOSECONDS), TIMED.floor)}
    levels = TIMED.project(np.array([x]), bounds)[0]  # type: ignore[arg-type]
    assert TIMED.total(levels) <= bounds["latency"] and SPACE.total(levels) <= bounds["params"]
    for site in np.flatnonzero(levels):
        more = levels.copy()
        more[site] -= 1
        assert TIMED.total(more) > bounds["latency"] or SPACE.total(more) > bounds["params"]


@given(
    limits, st.sampled_from([{}, {"kept": 0.7}, {"max_kl": 0.3}, {"preference": (0.5, 0.5)}, {"ratio": 0.8, "id": "a"}])
)
def test_an_answer_is_within_its_bound_or_says_what_is_feasible(
    policy: Policy, ms: float, more: dict[str, Any]
) -> None:
    answer = one(policy, max_latency_ms=ms, **more)
    assert answer.latency_ms == int(TIMED.total(np.array(answer.levels))) / NANOSECONDS
    assert answer.latency_table == "box" and answer.latency_error == TABLE.error
    if ms < FLOOR:
        assert not answer.feasible and f"{FLOOR:.4g} ms" in answer.note and answer.latency_ms == FLOOR
    elif answer.feasible:
        assert answer.latency_ms <= ms
        assert answer.kept <= answer.request.kept if answer.request.kept else True
        assert answer.kl_high <= 0.3 if answer.request.max_kl else True
    else:
        assert "KL" in answer.note and answer.latency_ms <= ms


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_an_answer_is_at_least_as_good_as_size_answers_cut_to_the_bound(policy: Policy, share: float) -> None:
    ms = FLOOR + share * (DENSE - FLOOR)
    answer = one(policy, max_latency_ms=ms)
    limit = {"params": float(SPACE.geometry.params), "latency": int(ms * NANOSECONDS)}
    sizes = policy.answer([Request(kept=float(kept)) for kept in np.linspace(0.4, 1.0, 61)])
    cut = TIMED.project(np.array([size.strategy for size in sizes]), limit)  # type: ignore[arg-type]
    within = [size.levels for size in sizes if size.latency_ms is not None and size.latency_ms <= ms]
    rivals = np.vstack([cut, *within])
    mine = predicted(policy, np.array([answer.levels]))[0]
    assert mine <= predicted(policy, rivals).min() + 1e-9


def test_time_is_spent_where_quality_is(policy: Policy) -> None:
    """Beside the size answer of the same latency: no worse, at about the same milliseconds."""
    better = 0
    for kept in (0.6, 0.7, 0.8):
        by_size = one(policy, kept=kept)
        assert by_size.latency_ms is not None
        in_time = one(policy, max_latency_ms=by_size.latency_ms)
        assert in_time.kl <= by_size.kl * (1 + 1e-9)
        better += in_time.kl < 0.99 * by_size.kl
    assert better  # the table's prices are others than the parameters'


@pytest.mark.parametrize("kept", [0.6, 0.8])
def test_both_bounds_hold_together(policy: Policy, kept: float) -> None:
    ms = one(policy, kept=kept).latency_ms
    assert ms is not None
    answer = one(policy, kept=kept, max_latency_ms=0.9 * ms)
    assert answer.feasible and answer.kept <= kept and answer.latency_ms is not None and answer.latency_ms <= 0.9 * ms


def test_a_bound_on_quality_gives_the_smallest_that_keeps_it(policy: Policy) -> None:
    loose = one(policy, max_latency_ms=0.9 * DENSE)
    kept = one(policy, max_latency_ms=0.9 * DENSE, max_kl=4 * loose.kl_high)
    assert kept.feasible and kept.kl_high <= 4 * loose.kl_high and kept.params < loose.params
    strict = one(policy, max_latency_ms=0.7 * DENSE, max_kl=1e-3)
    assert not strict.feasible and "KL 0.001" in strict.note


def test_domains_and_latency_together(of_domains: Policy) -> None:
    ms = 0.75 * DENSE
    code = one(of_domains, max_latency_ms=ms, preference={"code": 0.95, "prose": 0.05})
    prose = one(of_domains, max_latency_ms=ms, preference={"code": 0.05, "prose": 0.95})
    assert code.domains["code"].kl < prose.domains["code"].kl and code.domains["prose"].kl > prose.domains["prose"].kl
    bounded = one(of_domains, max_latency_ms=ms, max_kl={"code": 2 * code.domains["code"].kl_high})
    assert bounded.feasible and bounded.domains["code"].kl_high <= 2 * code.domains["code"].kl_high
    assert max(a.latency_ms or 0 for a in (code, prose, bounded)) <= ms


def test_company_and_tables_change_no_answer(policy: Policy) -> None:
    requests = [Request(kept=0.7), Request(max_latency_ms=0.8 * DENSE), Request(kept=0.6), Request(max_kl=0.2)]
    together, alone = policy.answer(requests), [policy.answer([request])[0] for request in requests]
    assert together == alone
    without = Policy(policy.parts).answer([requests[0]])[0]
    assert without.levels == together[0].levels and without.latency_ms is None and without.latency_table is None


def test_requests_name_a_table_where_there_are_several(policy: Policy) -> None:
    slow = made_up_table(SPACE.geometry, attention=2.0, mlp=1.0)
    several = Policy(policy.parts, {"box": TABLE, "slow": slow})
    assert several.answer([Request(kept=0.7)])[0].latency_ms is None
    by_name = [one(several, kept=0.7, latency=name).latency_ms or 0 for name in ("box", "slow")]
    assert by_name[1] > 1.5 * by_name[0]
    with pytest.raises(RequestError, match="name a table by 'latency', of box, slow"):
        one(several, max_latency_ms=5)
    with pytest.raises(RequestError, match="'fast'; this policy knows box, slow"):
        one(several, max_latency_ms=5, latency="fast")
    with pytest.raises(RequestError, match="no latency table: make one by 'unicuco profile'"):
        one(Policy(policy.parts), max_latency_ms=5)


def test_tables_lie_beside_a_policy_or_in_its_run_and_outlive_new_versions(policy: Policy, tmp_path: Path) -> None:
    run = tmp_path / "run"
    policy.save(run / "policy")
    (run / "run.json").write_text("{}")
    TABLE.save(run / "latency" / "box.json")
    TABLE.save(run / "policy" / "latency" / "own.json")
    policy.save(run / "policy")
    for folder in (run, run / "policy"):
        assert set(Policy.load(folder).timed.names) == {"box", "own"}


def test_a_damaged_or_foreign_table_is_refused_in_one_sentence(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    path = tmp_path / "policy" / "latency" / "box.json"
    made_up_table(geometry(blocks=4)).save(path)
    with pytest.raises(LatencyError, match=r"Table 'box': .* differ from those of the base model here"):
        Policy.load(tmp_path / "policy")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(LatencyError, match=r"box\.json is no latency table"):
        Policy.load(tmp_path / "policy")
    TABLE.save(path.with_name("My Box.json"))
    path.unlink()
    with pytest.raises(LatencyError, match="lower-case"):
        Policy.load(tmp_path / "policy")


def test_the_plain_form_answers_too(tmp_path: Path) -> None:
    model = KnownDamage(SPACE, seed=4)
    learner = make_learner(tmp_path, model, evaluations=20, surrogate={"mean": "plain"})
    plain = Policy(search(learner, model).policy().parts, {"box": TABLE})
    answer = one(plain, max_latency_ms=0.8 * DENSE)
    assert answer.feasible and answer.latency_ms is not None and answer.latency_ms <= 0.8 * DENSE
