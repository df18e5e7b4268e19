"""Policies with latency among their objectives, and preferences for latency by tables that they were not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, KnownDomains, geometry, make_learner, make_space, search
from tests.unicuco.tables import made_up_table
from unicuco.errors import PolicyError, RequestError, SpaceError
from unicuco.latency import NANOSECONDS, LatencyError, NamedTable
from unicuco.learner import Learner
from unicuco.policy import Policy
from unicuco.request import Answer, Request
from unicuco.timed import Timed
from unicuco.uniform import answer_uniform

SPACE = make_space(5)
MODEL = KnownDamage(SPACE, seed=4)
TABLE = made_up_table(SPACE.geometry, attention=3.0, mlp=0.3)
"""Attentions are dear: ten times an MLP's time, a third of its parameters."""
BOX = NamedTable.of("box", TABLE)
TIMED = Timed("box", TABLE, SPACE)
WEIGHTS = (0.35, 0.5, 0.65, 0.8)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return search(make_learner(tmp_path_factory.mktemp("log"), MODEL, latency=BOX, margin_groups=3), MODEL)


@pytest.fixture(scope="module")
def policy(learner: Learner) -> Policy:
    return learner.policy()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Of the same model, trained on size and quality; the table came later."""
    found = search(make_learner(tmp_path_factory.mktemp("log"), MODEL, margin_groups=3), MODEL)
    return Policy(found.policy().parts, {"box": TABLE})


@pytest.fixture(scope="module")
def of_domains(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = KnownDomains(SPACE, seed=4)
    return search(make_learner(tmp_path_factory.mktemp("log"), model, latency=BOX, evaluations=24), model).policy()


def one(policy: Policy, **request: Any) -> Answer:
    return policy.answer([Request(**request)])[0]


def ms(answer: Answer) -> float:
    assert answer.latency_ms is not None
    return answer.latency_ms


def true_kl(answer: Answer) -> float:
    return float(MODEL.kl(np.array(answer.levels))[0])


def test_objectives_are_the_tables_sums(policy: Policy) -> None:
    assert policy.costs.names == ("size", "latency") and policy.timed.own == "box"
    levels = policy.measured_levels
    blocks = TIMED.dense - TIMED.fixed["latency"]
    for prospect, row in zip(policy.prospects(levels, 2), levels, strict=True):
        assert len(prospect.objectives) == 3
        left = prospect.objectives[1] * (1 - policy.scale.kept_low) + policy.scale.kept_low
        assert round(left * blocks) + TIMED.fixed["latency"] == TIMED.total(row)
    answer = one(policy, kept=0.7)
    assert ms(answer) == TIMED.total(np.array(answer.levels)) / NANOSECONDS and answer.latency_table == "box"


@pytest.mark.parametrize("which", ["policy", "untrained"])
def test_who_prefers_latency_gets_fewer_milliseconds_than_who_prefers_size(
    which: str, request: pytest.FixtureRequest
) -> None:
    asked: Policy = request.getfixturevalue(which)
    for weight in WEIGHTS:
        small = one(asked, preference={"size": weight, "mean": 1 - weight})
        fast = one(asked, preference={"latency": weight, "mean": 1 - weight})
        assert ms(fast) < 0.97 * ms(small) and fast.kept > small.kept - 0.03
        # At the size of the fast one: the one that looks at sizes is slower.
        same = one(asked, kept=fast.kept + 1e-9)
        assert same.kept > fast.kept - 0.03 and ms(fast) < 0.97 * ms(same)


def test_weights_between_size_and_latency_trade_one_for_the_other(policy: Policy) -> None:
    shares = np.linspace(0, 1, 6)
    answers = [one(policy, preference={"size": 0.6 * (1 - s), "latency": 0.6 * s, "mean": 0.4}) for s in shares]
    for first, last in ((0, -1), (0, 3), (2, -1)):
        assert ms(answers[last]) < ms(answers[first]) and answers[last].kept > answers[first].kept
    for answer, share in zip(answers, shares, strict=True):
        assert answer.preference == pytest.approx((0.6 * (1 - share), 0.6 * share, 0.4))


def test_stratnet_is_near_the_search_that_sees_every_price(policy: Policy, untrained: Policy) -> None:
    """What StratNet answers at once is as good a trade as what the search over allocations finds, by the law itself."""
    worse = []
    for weight in WEIGHTS:
        preference = {"latency": weight, "mean": 1 - weight}
        at_once, searched = one(policy, preference=preference), one(untrained, preference=preference)
        assert at_once.origin in ("stratnet", "measured")
        bound = ms(at_once) + 1e-9
        best = one(untrained, max_latency_ms=bound)
        worse.append(np.log(true_kl(at_once) / true_kl(best)))
        assert abs(ms(at_once) - ms(searched)) < 0.15 * TIMED.dense / NANOSECONDS
    assert np.mean(worse) < np.log(1.15)


def test_a_search_with_latency_looks_where_the_fast_ones_are(
    learner: Learner, policy: Policy, untrained: Policy
) -> None:
    """What it proposes takes less time for its size than what a search for size proposes."""
    slower = []
    for searched in (policy, untrained):
        proposed = [e.levels for e in searched.parts.evaluations if e.origin not in ("uniform", "prior")]
        left = policy.costs(np.array(proposed))
        slower.append(float(np.median(left[:, 1] - left[:, 0])))
    assert slower[0] < 0.12 < 0.18 < slower[1]
    assert learner.status().hypervolume > 0


@pytest.mark.parametrize("which", ["policy", "untrained"])
@given(
    weight=st.floats(0, 1),
    share=st.floats(0, 1),
    kept=st.none() | st.floats(0.1, 1),
    bound=st.none() | st.floats(1, 18),
)
def test_bounds_hold_beside_any_preference(
    which: str, policy: Policy, untrained: Policy, weight: float, share: float, kept: float | None, bound: float | None
) -> None:
    weights = {"size": weight * share, "latency": weight * (1 - share), "mean": 1 - weight}
    answer = one(policy if which == "policy" else untrained, preference=weights, kept=kept, max_latency_ms=bound)
    assert answer.feasible == (bound is None or bound * NANOSECONDS >= TIMED.floor) and len(answer.preference) == (
        3 if which == "policy" else 2
    )
    if answer.feasible:
        assert answer.kept <= (kept or 1) + 1e-9 and ms(answer) <= (bound or 1e9)


def test_company_changes_no_answer(policy: Policy) -> None:
    preferred = ({"latency": 1, "mean": 1}, {"latency": 1, "size": 2, "mean": 3}, (1, 1))
    requests = [Request(kept=0.7), *(Request(preference=p) for p in preferred), Request(max_latency_ms=9)]
    requests += [Request(preference=p, kept=0.8) for p in preferred] + [Request(max_kl=0.1)]
    assert policy.answer(requests) == [policy.answer([request])[0] for request in requests]


def test_a_bound_on_latency_asks_stratnet_too_and_is_no_worse(policy: Policy, untrained: Policy) -> None:
    for bound in (7.0, 9.0, 11.0, 14.0):
        own, other = one(policy, max_latency_ms=bound), one(untrained, max_latency_ms=bound)
        assert ms(own) <= bound and true_kl(own) < 1.25 * true_kl(other)


def test_several_domains_and_latency_together(of_domains: Policy) -> None:
    assert of_domains.costs.names == ("size", "latency") and of_domains.qualities.names == ("code", "prose")
    code = one(of_domains, preference={"latency": 0.5, "code": 0.45, "prose": 0.05})
    prose = one(of_domains, preference={"latency": 0.5, "code": 0.05, "prose": 0.45})
    of_code, of_prose = (answer.domains["code"].kl / answer.domains["prose"].kl for answer in (code, prose))
    assert of_code < 0.8 * of_prose
    assert len(code.preference) == 4 and sum(code.preference) == pytest.approx(1)
    small = one(of_domains, preference={"size": 0.5, "code": 0.45, "prose": 0.05})
    assert ms(code) < ms(small)
    bounded = one(of_domains, max_kl={"code": 2 * code.domains["code"].kl_high})
    assert bounded.feasible and bounded.domains["code"].kl_high <= 2 * code.domains["code"].kl_high


def test_answers_survive_the_disk_and_the_table_goes_with_them(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    again = Policy.load(tmp_path / "policy")
    assert again.parts.latency == BOX and again.timed.names == ["box"] and again.scale == policy.scale
    requests = [Request(preference={"latency": w, "size": 0.2, "mean": 1 - w}) for w in WEIGHTS] + [Request(kept=0.6)]
    for one_, two in zip(policy.answer(requests), again.answer(requests), strict=True):
        assert (one_.levels, one_.preference, one_.latency_ms) == (two.levels, two.preference, two.latency_ms)
        assert Answer.model_validate_json(two.model_dump_json()) == two


def test_a_policy_whose_table_was_changed_is_refused(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    path = tmp_path / "policy" / "policy.json"
    about = json.loads(path.read_text())
    about["latency"]["table"]["fixed_ms"] *= 0.5
    path.write_text(json.dumps(about))
    with pytest.raises(PolicyError, match="not what its digest says"):
        Policy.load(tmp_path / "policy")
    about["latency"] = NamedTable.of("box", made_up_table(geometry(blocks=4))).model_dump(mode="json")
    path.write_text(json.dumps(about))
    with pytest.raises(PolicyError, match="differ from those of the base model here"):
        Policy.load(tmp_path / "policy")


def test_the_table_that_was_trained_on_is_meant_unless_another_is_named(policy: Policy) -> None:
    slow = made_up_table(SPACE.geometry, attention=0.5, mlp=4.0)
    both = policy.with_table("slow", slow)
    asked: dict[str, Any] = {"preference": {"latency": 0.6, "mean": 0.4}}
    assert one(both, **asked).levels == one(policy, **asked).levels and one(both, kept=0.7).latency_table == "box"
    by_other = one(both, latency="slow", **asked)
    assert by_other.latency_table == "slow" and by_other.groups > one(policy, **asked).groups, (
        "attentions are cheap there"
    )
    assert policy.with_table("box", TABLE).timed.names == ["box"]
    with pytest.raises(LatencyError, match="Table 'box' is another one than this policy was trained on"):
        policy.with_table("box", slow)


def test_what_does_not_go_together_is_refused(policy: Policy, untrained: Policy) -> None:
    prefers: dict[str, Any] = {"preference": {"latency": 0.5, "mean": 0.5}}
    bare = Policy(untrained.parts)
    with pytest.raises(RequestError, match="prefers latency, but this policy has no latency table: make one by"):
        one(bare, **prefers)
    with pytest.raises(RequestError, match="prefers latency: name a table by 'latency', of box, slow"):
        one(untrained.with_table("slow", TABLE), **prefers)
    with pytest.raises(RequestError, match="prefers latency, but"):
        bare.check_request(Request(**prefers))
    with pytest.raises(ValueError, match="give max_kl or a preference with a weight for 'size' or 'latency'"):
        Request(**prefers, max_kl=0.1)
    with pytest.raises(RequestError, match="not for latency"):
        answer_uniform(policy, Request(**prefers))
    assert answer_uniform(policy, Request(kept=0.7)).preference[1] == 0


def test_a_learner_refuses_a_table_that_it_cannot_learn_by(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="differ from those of the base model here"):
        make_learner(tmp_path, MODEL, latency=NamedTable.of("box", made_up_table(geometry(blocks=4))))
    sparse = make_space(5, pruner="wanda")
    with pytest.raises(SpaceError, match="save no time"):
        make_learner(tmp_path, KnownDamage(sparse), latency=BOX)


def test_the_plain_form_learns_latency_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"evaluations": 20, "surrogate": {"mean": "plain"}}
    plain = search(make_learner(tmp_path, MODEL, latency=BOX, **settings), MODEL).policy()
    answers = [one(plain, preference={"latency": w, "mean": 1 - w}) for w in (0.1, 0.9)]
    assert ms(answers[1]) < ms(answers[0]) and len(answers[0].preference) == 3
    other = plain.with_table("slow", made_up_table(SPACE.geometry))
    assert one(other, preference={"latency": 0.5, "mean": 0.5}, latency="slow").feasible
