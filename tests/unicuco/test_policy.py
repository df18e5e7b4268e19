"""Policies on a base model that is only a formula: bounds hold exactly, order is kept, disk round trips."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from unicuco.allocation import allocate
from unicuco.errors import PolicyError
from unicuco.policy import Policy
from unicuco.proposals import budgets_of
from unicuco.request import Answer, Request

SPACE = make_space(5)
MODEL = KnownDamage(SPACE, seed=4)
GEOMETRY = SPACE.geometry
FLOOR = int(SPACE.total(SPACE.num_levels - 1))
SOURCE = {"model": {"spec": "made-up", "digest": "a" * 64}, "preparation": {"digest": "p" * 64}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    learner = make_learner(tmp_path_factory.mktemp("log"), MODEL, evaluations=32)
    learner.provenance = SOURCE
    return search(learner, MODEL).policy()


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("run") / "policy"
    policy.save(target)
    return target


def one(policy: Policy, **request: Any) -> Answer:
    return policy.answer([Request(**request)])[0]


def mixed(count: int = 64) -> list[Request]:
    """Every kind of request, sizes from nearly nothing to more than dense."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        share, weight = float(rng.uniform(0.3, 1.0)), float(rng.random())
        kinds: list[dict[str, Any]] = [
            {"kept": share},
            {"ratio": share},
            {"params": int(share * 1.1 * GEOMETRY.params)},
            {"bytes": int(share * 2.2 * GEOMETRY.params)},
            {"preference": (weight, 1 - weight)},
            {"max_kl": float(np.exp(rng.uniform(-5, 0)))},
            {"preference": (1 - weight, weight), "kept": share},
            {"max_kl": 0.5, "ratio": share},
            {"kept": share, "ratio": float(rng.uniform(0.5, 1)), "bytes": int(1.8 * GEOMETRY.params)},
        ]
        made.append(Request(id=f"r{i}", **kinds[i % len(kinds)]))
    return made


def within_bounds(answer: Answer) -> bool:
    request = answer.request
    return (
        (request.params is None or answer.params <= request.params)
        and (request.bytes is None or answer.bytes <= request.bytes)
        and (request.ratio is None or answer.ratio <= request.ratio + 1e-9)
        and (request.kept is None or answer.kept <= request.kept + 1e-9)
    )


def test_mixed_requests_are_answered_in_order_and_never_over_budget(policy: Policy) -> None:
    requests = mixed()
    answers = policy.answer(requests)
    assert [answer.id for answer in answers] == [f"r{i}" for i in range(64)]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.request == request
        assert within_bounds(answer), answer
        assert answer.feasible or request.max_kl is not None
        if answer.feasible and request.max_kl is not None:
            assert answer.kl_high <= request.max_kl


@given(st.lists(st.sampled_from(mixed()), max_size=8))
def test_company_changes_no_answer(policy: Policy, requests: list[Request]) -> None:
    together = policy.answer(requests)
    assert len(together) == len(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = policy.answer([request])[0]
        assert alone.levels == answer.levels and alone.kl == pytest.approx(answer.kl, rel=1e-9)


def test_an_answer_is_consistent_with_its_strategy(policy: Policy) -> None:
    for answer in policy.answer(mixed()):
        levels = np.array(answer.levels)
        size, shape = SPACE.size(levels), SPACE.shape(levels)
        assert (answer.params, answer.bytes, answer.kept, answer.ratio) == (
            size.params, size.bytes, size.kept, size.ratio,
        )  # fmt: skip
        assert (answer.flops_per_token, answer.kv_bytes_per_token) == (size.flops_per_token, size.kv_bytes_per_token)
        assert (tuple(answer.groups), tuple(answer.neurons)) == (shape.groups, shape.neurons)
        assert answer.strategy == SPACE.sparsities(levels).tolist()
        assert 0 <= answer.kl_low <= answer.kl <= answer.kl_high
        assert sum(answer.preference) == pytest.approx(1)
        assert answer.origin in ("stratnet", "measured")


@given(st.floats(0.001, 1.0), st.sampled_from(["kept", "ratio", "params", "bytes"]))
def test_any_bound_holds_or_is_said_to_be_impossible(policy: Policy, share: float, kind: str) -> None:
    value = {"params": int(share * GEOMETRY.params) or 1, "bytes": int(share * 2 * GEOMETRY.params) or 1}.get(
        kind, share
    )
    answer = one(policy, **{kind: value})
    assert answer.feasible == within_bounds(answer)
    if answer.feasible:
        # No level of any site would still fit: the whole budget is used.
        assert within_bounds(answer) and (answer.origin == "measured" or not _a_level_fits(answer))


def _a_level_fits(answer: Answer) -> bool:
    for site in np.flatnonzero(answer.levels):
        levels = np.array(answer.levels)
        levels[site] -= 1
        size = SPACE.size(levels)
        more = answer.model_copy(
            update={"params": size.params, "bytes": size.bytes, "kept": size.kept, "ratio": size.ratio}
        )
        if within_bounds(more):
            return True
    return False


def test_quality_is_near_the_optimum_of_every_size(policy: Policy) -> None:
    kept = np.linspace(0.45, 0.95, 11)
    answers = policy.answer([Request(kept=float(k)) for k in kept])
    found = MODEL.kl(np.array([a.levels for a in answers]))
    best = MODEL.kl(allocate(SPACE, MODEL.truth, budgets_of(SPACE, kept)))
    assert np.mean(found / best) < 1.1
    covered = [a.kl_low <= kl <= a.kl_high for a, kl in zip(answers, found, strict=True)]
    assert np.mean(covered) >= 0.8


def test_several_bounds_mean_the_tightest(policy: Policy) -> None:
    tight = one(policy, kept=0.6)
    assert one(policy, kept=0.6, ratio=1.0, params=GEOMETRY.params).levels == tight.levels
    assert one(policy, kept=0.9, ratio=0.9, bytes=int(budgets_of(SPACE, np.array([0.6]))[0]) * 2).levels == tight.levels


def test_the_bytes_of_a_checkpoint_follow_its_dtype(policy: Policy) -> None:
    request = Request(bytes=2 * GEOMETRY.params)
    wide, narrow = policy.answer([request], bytes_per_param=4)[0], policy.answer([request])[0]
    assert wide.bytes == 4 * wide.params <= 2 * GEOMETRY.params
    assert narrow.params == GEOMETRY.params


@pytest.mark.parametrize("measured", [True, False])
def test_more_weight_on_size_gives_smaller_models(policy: Policy, measured: bool) -> None:
    """With the run's measured strategies to choose from, and on the network's word alone."""
    if not measured:
        policy = Policy(replace(policy.parts, evaluations=()))
    answers = policy.answer([Request(preference=(w, 1 - w)) for w in np.linspace(0.02, 0.98, 25)])
    kept = np.array([answer.kept for answer in answers])
    # Levels and measured strategies make small steps of either sign; the way is down.
    assert (np.diff(kept) < 0.03).all() and kept[0] > 0.9 and kept[-1] < 0.5
    assert np.corrcoef(kept, np.arange(25))[0, 1] < -0.95
    kl = np.array([answer.kl for answer in answers])
    assert kl[0] < kl[12] < kl[-1]


def test_preferences_are_scaled(policy: Policy) -> None:
    assert one(policy, preference=(3, 1)).levels == one(policy, preference=(0.75, 0.25)).levels
    one(policy, preference=(1, 0))
    one(policy, preference=(0, 1))


def test_a_preference_under_a_bound_obeys_both(policy: Policy) -> None:
    free, bound = one(policy, preference=(0.1, 0.9)), one(policy, preference=(0.1, 0.9), kept=0.6)
    assert free.kept > 0.8 and 0.5 < bound.kept <= 0.6
    loose = one(policy, preference=(0.9, 0.1), kept=0.95)
    assert loose.kept <= one(policy, preference=(0.9, 0.1)).kept + 0.03


def test_a_quality_bound_gives_a_small_model_whose_interval_is_within(policy: Policy) -> None:
    bounds = np.geomspace(0.003, 0.3, 9)
    answers = policy.answer([Request(max_kl=float(b)) for b in bounds])
    for bound, answer in zip(bounds, answers, strict=True):
        assert answer.feasible and answer.kl_high <= bound
    kept = [answer.kept for answer in answers]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1] + 0.2
    # No needless caution: the smallest model whose predicted interval fits is about as large.
    for bound, answer in zip(bounds, answers, strict=True):
        smaller = one(policy, kept=max(answer.kept - 0.05, 0.05))
        assert smaller.kl_high > bound or answer.kept <= policy.scale.kept_low + 0.02


def test_a_quality_that_only_the_dense_model_has_gives_the_dense_model(policy: Policy) -> None:
    answer = one(policy, max_kl=1e-6)
    assert answer.feasible and answer.kept == 1 and (answer.kl, answer.kl_high) == (0, 0)
    assert one(policy, kept=1.0).kl == 0


def test_impossible_sizes_say_what_is_possible(policy: Policy) -> None:
    for request in ({"params": FLOOR - 1}, {"bytes": 2 * FLOOR - 2}, {"ratio": 0.5 * FLOOR / GEOMETRY.params}):
        answer = one(policy, **request)
        assert not answer.feasible and f"{FLOOR:,} parameters are left" in answer.note
        assert answer.params == FLOOR
    assert one(policy, params=FLOOR).feasible


def test_impossible_combinations_say_the_nearest(policy: Policy) -> None:
    answer = one(policy, max_kl=0.001, kept=0.5)
    assert not answer.feasible and answer.kept <= 0.5
    assert "KL 0.001" in answer.note and f"{answer.kl:.3g}" in answer.note
    assert answer.levels == one(policy, kept=0.5).levels


def test_sizes_outside_the_training_carry_a_warning(policy: Policy) -> None:
    assert "guess" in one(policy, kept=0.2).note and one(policy, kept=0.6).note == ""


def test_no_request_no_answer(policy: Policy) -> None:
    assert policy.answer([]) == []


def test_answers_survive_the_disk(policy: Policy, folder: Path) -> None:
    requests = mixed()
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".parquet", ".safetensors", ".safetensors"]
    for place in (folder, folder.parent):  # the run's folder will do
        again = Policy.load(place)
        assert again.parts.provenance == SOURCE and again.parts.version == policy.parts.version
        for one, two in zip(policy.answer(requests), again.answer(requests), strict=True):
            assert (one.id, one.levels, one.feasible, one.origin) == (two.id, two.levels, two.feasible, two.origin)
            assert (one.kl, one.kl_low, one.kl_high) == pytest.approx((two.kl, two.kl_low, two.kl_high), rel=1e-6)


def test_the_plain_form_survives_the_disk(tmp_path: Path) -> None:
    from unicuco.surrogate import SurrogateConfig

    learner = make_learner(tmp_path / "log", MODEL, evaluations=16, surrogate=SurrogateConfig(mean="plain"))
    before = search(learner, MODEL).policy()
    before.save(tmp_path / "policy")
    after = Policy.load(tmp_path / "policy")
    for one, two in zip(before.answer(mixed()), after.answer(mixed()), strict=True):
        assert one.levels == two.levels and one.kl == pytest.approx(two.kl, rel=1e-6)
        assert within_bounds(one)


def test_saving_replaces_and_a_full_disk_keeps_the_old(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unicuco.errors import DiskFullError

    policy.save(tmp_path / "policy")
    policy.save(tmp_path / "policy")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unicuco.policy_parts.save_file", full)
        with pytest.raises(DiskFullError):
            policy.save(tmp_path / "policy")
    assert Policy.load(tmp_path / "policy").parts.version == policy.parts.version
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize(
    "name", ["policy.json", "stratnet.safetensors", "surrogate.safetensors", "evaluations.parquet"]
)
@pytest.mark.parametrize("how", ["missing", "truncated", "garbage"])
def test_a_broken_folder_is_refused_in_one_sentence(name: str, how: str, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "policy")
    file = broken / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if how == "truncated" else b"\x07" * 64)
    with pytest.raises(PolicyError, match="policy at") as caught:
        Policy.load(broken)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '{"format": 99}'])
def test_a_strange_description_is_refused(content: str, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "policy")
    (broken / "policy.json").write_text(content)
    with pytest.raises(PolicyError, match="policy at"):
        Policy.load(broken)


def test_parts_of_two_policies_do_not_mix(folder: Path, tmp_path: Path) -> None:
    """A network or a space of another size is noticed when the policy is read, not when it answers."""
    broken = shutil.copytree(folder, tmp_path / "policy")
    about = json.loads((broken / "policy.json").read_text())
    about["space"]["config"]["sites"] = "block"
    (broken / "policy.json").write_text(json.dumps(about))
    with pytest.raises(PolicyError, match="policy at"):
        Policy.load(broken)


def test_no_policy_at_all_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="No readable policy"):
        Policy.load(tmp_path)


def test_another_base_model_is_refused(policy: Policy) -> None:
    policy.check_model("a" * 64, "made-up")
    with pytest.raises(PolicyError, match=r"trained for made-up .*not for other"):
        policy.check_model("b" * 64, "other")
