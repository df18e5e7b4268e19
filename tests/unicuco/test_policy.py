"""Policies on a base model that is only a formula: bounds hold exactly, order is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.known_policy import FLOOR, GEOMETRY, MODEL, SPACE, mixed, policy, within_bounds
from unicuco.allocation import allocate
from unicuco.errors import PolicyError
from unicuco.policy import Policy
from unicuco.proposals import budgets_of
from unicuco.request import Answer, Request

__all__ = ["policy"]  # a fixture


def one(policy: Policy, **request: Any) -> Answer:
    return policy.answer([Request(**request)])[0]


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


def test_another_base_model_is_refused(policy: Policy) -> None:
    policy.check_model("a" * 64, "made-up")
    with pytest.raises(PolicyError, match=r"trained for made-up .*not for other"):
        policy.check_model("b" * 64, "other")
