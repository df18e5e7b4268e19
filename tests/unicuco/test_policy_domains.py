"""Policies whose objectives are size and every domain's KL: what is preferred is kept, within every bound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco import tiny
from tests.unicuco.known_policy import within_bounds
from tests.unicuco.synthetic import KnownDomains, make_learner, make_space, search
from unicuco.allocation import allocate
from unicuco.errors import PolicyError, RequestError
from unicuco.evaluations import EvaluationLog
from unicuco.evaluator import Evaluator
from unicuco.heldout import measure_heldout
from unicuco.learner import Learner, LearnerConfig
from unicuco.policy import Policy
from unicuco.preparation import prepare
from unicuco.request import Answer, Request
from unicuco.space import budgets_of
from unicuco.stratnet import StratNetConfig

SPACE = make_space(5)
MODEL = KnownDomains(SPACE, seed=3)
SIZES = (0.5, 0.6, 0.7, 0.8)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """Margins are on offer and must not be taken."""
    return search(make_learner(tmp_path_factory.mktemp("log"), MODEL, margin_groups=3, evaluations=48, batch=16), MODEL)


@pytest.fixture(scope="module")
def policy(learner: Learner) -> Policy:
    return learner.policy()


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("run") / "policy"
    policy.save(target)
    return target


def one(policy: Policy, **request: Any) -> Answer:
    return policy.answer([Request(**request)])[0]


def truth(answer: Answer) -> np.ndarray:
    """What each domain really loses (``num_domains``)."""
    return MODEL.domain_kl(np.array(answer.levels))[0]


def mixed() -> list[Request]:
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for share, weight in rng.uniform(0.35, 1.0, (8, 2)):
        made += [
            {"kept": share, "preference": {"code": weight, "prose": 1 - weight}},
            {"ratio": share, "preference": {"prose": 1.0}},
            {"preference": {"size": weight, "code": 0.3, "prose": 0.1}},
            {"preference": {"size": 0.2, "code": 1.0}, "params": int(share * SPACE.geometry.params)},
            {"preference": (weight, 1 - weight)},
            {"kept": share},
            {"max_kl": {"code": 0.3 * share}, "bytes": int(1.9 * SPACE.geometry.params)},
            {"max_kl": 0.2 * share, "preference": {"code": 2.0, "prose": 1.0}},
            {"max_kl": {"code": 0.4, "prose": 0.1 * weight}, "kept": share},
        ]
    return [Request(id=f"r{i}", **fields) for i, fields in enumerate(made)]


def test_the_preferred_domain_is_kept_at_the_same_size(policy: Policy) -> None:
    for kept in SIZES:
        code = one(policy, kept=kept, preference={"code": 1.0})
        prose = one(policy, kept=kept, preference={"prose": 1.0})
        assert within_bounds(code) and within_bounds(prose) and code.feasible and prose.feasible
        assert min(code.kept, prose.kept) > kept - 0.06, "the budget is used"
        assert truth(code)[0] < 0.75 * truth(prose)[0] and truth(prose)[1] < 0.75 * truth(code)[1]


def test_shares_between_the_corners_trade_one_domain_for_the_other(policy: Policy) -> None:
    for kept in SIZES:
        answers = [one(policy, kept=kept, preference={"code": w, "prose": 1 - w}) for w in (0.0, 0.5, 1.0)]
        code, prose = np.array([truth(answer) for answer in answers]).T
        assert code[0] * 1.1 > code[1] > code[2] / 1.1 and prose[2] * 1.1 > prose[1] > prose[0] / 1.1
        assert np.log(code[1] * prose[1]) < min(np.log(code[0] * prose[0]), np.log(code[2] * prose[2])) + 0.1


def test_each_corner_is_near_the_optimum_of_its_domain(policy: Policy) -> None:
    ratios = []
    for d, name in enumerate(MODEL.names):
        best = MODEL.domain_kl(allocate(SPACE, MODEL.truths[d], budgets_of(SPACE, np.array(SIZES))))[:, d]
        found = np.array([truth(one(policy, kept=kept, preference={name: 1.0}))[d] for kept in SIZES])
        ratios += (found / best).tolist()
    assert np.mean(ratios) < 1.2


def test_mixed_requests_hold_every_bound_or_say_so(policy: Policy) -> None:
    requests = mixed()
    answers = policy.answer(requests)
    assert [answer.id for answer in answers] == [request.id for request in requests]
    for answer in answers:
        assert within_bounds(answer), answer
        assert set(answer.domains) == {"code", "prose"}
        assert len(answer.preference) == 3 and sum(answer.preference) == pytest.approx(1)
        assert min(answer.preference) >= 0
        bounds = answer.request.max_kl
        if isinstance(bounds, dict):
            held = all(answer.domains[name].kl_high <= bound for name, bound in bounds.items())
            assert answer.feasible == held and (held or "KL on" in answer.note)
        elif bounds is not None:
            assert answer.feasible == (answer.kl_high <= bounds)
        for promise in answer.domains.values():
            assert 0 <= promise.kl_low <= promise.kl <= promise.kl_high
        alone = policy.answer([answer.request])[0]
        assert alone.levels == answer.levels, "company changes no answer"


@given(st.floats(0.02, 1.0), st.floats(0, 1), st.sampled_from(["kept", "ratio"]))
def test_no_shares_break_a_budget(policy: Policy, share: float, weight: float, kind: str) -> None:
    answer = one(policy, **{kind: share, "preference": {"code": weight, "prose": 1 - weight}})
    assert answer.feasible == within_bounds(answer)
    assert answer.feasible or "parameters are left" in answer.note


def test_promises_hold_for_each_domain(policy: Policy) -> None:
    answers = [one(policy, kept=k, preference={"code": w, "prose": 1 - w}) for k in SIZES for w in (0.0, 0.3, 0.7, 1.0)]
    held = [
        answer.domains[name].kl_low <= kl <= answer.domains[name].kl_high
        for answer in answers
        for name, kl in zip(MODEL.names, truth(answer), strict=True)
    ]
    assert np.mean(held) >= 0.8
    assert one(policy, kept=1.0).domains["code"].kl == 0


def test_a_bound_on_one_domain_lets_go_of_the_other(policy: Policy) -> None:
    """Nobody prefers anything, so the smallest model within the bound may forget the domain without one."""
    bound, both = 0.15, {"code": 1.0, "prose": 1.0}
    free, alike = one(policy, max_kl={"code": bound}), one(policy, max_kl={"code": bound}, preference=both)
    assert free.feasible and alike.feasible and free.kept <= alike.kept
    assert free.domains["code"].kl_high <= bound
    assert free.preference[1] >= free.preference[2]


def test_unknown_domains_are_refused_with_the_known_ones(policy: Policy) -> None:
    with pytest.raises(RequestError, match=r"'poems'.*size, code, prose"):
        one(policy, kept=0.7, preference={"poems": 1.0})


def test_a_search_over_domains_covers_the_surface_and_measures_no_margins(learner: Learner) -> None:
    done = learner.evaluations()
    assert learner.domains == ("code", "prose") and all(e.margin_group < 0 for e in done)
    assert learner.status().spent == 48 and learner.status().hypervolume > 0
    ratio = [np.log(e.domain_kl[0] / e.domain_kl[1]) for e in done if e.origin in ("stratnet", "allocation")]
    assert max(ratio) - min(ratio) > 1.0, "both domains were favoured by some"


def test_answers_survive_the_disk(policy: Policy, folder: Path) -> None:
    again = Policy.load(folder)
    assert again.qualities.names == ("code", "prose") and again.scale == policy.scale
    for one_, two in zip(policy.answer(mixed()), again.answer(mixed()), strict=True):
        assert (one_.levels, one_.feasible, one_.origin) == (two.levels, two.feasible, two.origin)
        for name, promise in one_.domains.items():
            assert promise.model_dump() == pytest.approx(two.domains[name].model_dump(), rel=1e-6)
        assert Answer.model_validate_json(two.model_dump_json()) == two


@pytest.mark.parametrize("change", [{"domains": []}, {"domains": ["code"]}, {"domains": ["a", "b", "c"]}])
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "policy")
    about = json.loads((broken / "policy.json").read_text())
    (broken / "policy.json").write_text(json.dumps(about | change))
    with pytest.raises(PolicyError, match="policy at"):
        Policy.load(broken)
    (broken / "policy.json").write_text(json.dumps(about))
    (broken / "domains.safetensors").unlink()
    with pytest.raises(PolicyError, match="policy at"):
        Policy.load(broken)


def test_the_mean_form_stays_available(tmp_path: Path) -> None:
    config = {"evaluations": 16, "objectives": "mean"}
    policy = search(make_learner(tmp_path, MODEL, **config), MODEL).policy()
    assert policy.parts.domains is None and len(one(policy, kept=0.7).preference) == 2
    with pytest.raises(RequestError, match="trained on the mean"):
        one(policy, kept=0.7, preference={"code": 1.0})


def test_the_plain_surrogate_takes_several_domains_too(tmp_path: Path) -> None:
    policy = search(make_learner(tmp_path, MODEL, evaluations=16, surrogate={"mean": "plain"}), MODEL).policy()
    answers = policy.answer(mixed())
    assert all(within_bounds(answer) for answer in answers) and len(answers[0].domains) == 2


def test_a_real_model_with_two_texts(model_folder: Any, load: Any, text_file: Path, tmp_path: Path) -> None:
    """Preparation, evaluator, learner and policy of a tiny real architecture agree on what a domain is."""
    other = tiny.write_text(tmp_path / "other.txt", seed=1)
    base = load("llama")
    prepared = prepare(base, tiny.tokenizer(), tiny.preparation_config(text_file, other))
    evaluator = Evaluator(str(model_folder("llama")), prepared.folder, tiny.FLOAT32, base=base)
    config = LearnerConfig(evaluations=14, batch=7, stratnet=StratNetConfig(width=32, steps=40))
    names = [domain.name for domain in prepared.config.calibration.domains]
    learner = Learner(prepared.space, prepared.damage, config, EvaluationLog(tmp_path / "log"), domains=names)
    while not learner.finished():
        for candidate in learner.ask(1):
            learner.tell(evaluator.evaluate(candidate))
        if learner.needs_training():
            learner.train()
    learner.save_policy(tmp_path / "policy")
    answer = one(Policy.load(tmp_path / "policy"), kept=0.7, preference={"other": 3.0, "words": 1.0})
    assert answer.kept <= 0.7 and set(answer.domains) == {"words", "other"}
    found = tiny.measured(evaluator, np.array(answer.levels))
    for name, kl in zip(names, found.domain_kl, strict=True):
        assert 0.2 < answer.domains[name].kl / kl < 5
    spec, sizes = str(model_folder("llama")), (0.7,)
    (row,) = measure_heldout(tmp_path / "policy", spec, prepared.folder, tiny.FLOAT32, sizes=sizes, windows=2)
    assert list(row["domains"]) == names
    assert np.mean([found["kl_heldout"] for found in row["domains"].values()]) == pytest.approx(row["kl_heldout"])
    assert all(found["kl_low"] <= found["kl_predicted"] <= found["kl_high"] for found in row["domains"].values())
