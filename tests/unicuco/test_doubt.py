"""A surrogate that misses what it was fitted to is not believed: answers fall back on what was measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unicuco.known_policy import MODEL, SPACE, policy
from unicuco.baselines.uniform import LADDER, uniform
from unicuco.doubt import TRUSTED, Doubt, misfit
from unicuco.evaluations import Candidate
from unicuco.policy import Policy
from unicuco.request import Request

__all__ = ["policy"]  # a fixture


@pytest.fixture(scope="module")
def doubted(policy: Policy) -> Policy:
    """The same fit beside measurements that it has nothing to do with, uniform forms among them."""
    rng = np.random.default_rng(0)
    changed = [replace(e, kl=e.kl * float(np.exp(rng.normal(0, 1)))) for e in policy.parts.evaluations]
    for i, kept in enumerate(LADDER):
        levels = tuple(int(level) for level in uniform(SPACE, kept, mlp_only=False))
        changed.append(replace(MODEL.evaluation(Candidate(f"u{i}", levels, "uniform")), kl=0.5 * (1 - kept)))
    return Policy(replace(policy.parts, evaluations=tuple(changed)))


def test_a_sound_policy_is_believed(policy: Policy) -> None:
    parts = policy.parts
    assert misfit(parts.surrogate, parts.evaluations) < TRUSTED
    assert Doubt.of(parts.surrogate, parts.qualities, parts.evaluations) is None


def test_without_a_test_there_is_no_doubt(policy: Policy) -> None:
    near_whole = [replace(e, kl=1e-5) for e in policy.parts.evaluations]
    assert misfit(policy.parts.surrogate, []) == misfit(policy.parts.surrogate, near_whole) == 0


def test_misfit_is_what_predictions_miss_by(policy: Policy) -> None:
    parts = policy.parts
    off = [replace(e, kl=e.kl * np.e) for e in parts.evaluations]
    assert misfit(parts.surrogate, off) == pytest.approx(1, abs=2 * TRUSTED)


def test_a_doubted_policy_is_never_worse_than_what_was_measured(doubted: Policy) -> None:
    done = doubted.parts.evaluations
    for kept in (0.5, 0.6, 0.7, 0.8, 0.9):
        answer = doubted.answer([Request(kept=kept)])[0]
        best = min((e for e in done if e.kept <= kept), key=lambda e: e.kl)
        assert answer.kept <= kept  # StratNet's own strategy may be one of those that were measured
        (own,) = {e.kl for e in done if tuple(e.levels) == tuple(answer.levels)}
        assert own <= best.kl + 1e-12
        assert answer.kl_low < own < answer.kl_high, "what was measured is what is promised"


def test_where_nothing_was_measured_the_interval_says_how_little_is_known(policy: Policy, doubted: Policy) -> None:
    smallest = min(e.kept for e in doubted.parts.evaluations)
    request = Request(kept=0.9 * smallest)
    sure, unsure = policy.answer([request])[0], doubted.answer([request])[0]
    assert unsure.origin == "stratnet" and unsure.levels == sure.levels
    assert np.log(unsure.kl_high / unsure.kl_low) > np.log(sure.kl_high / sure.kl_low) + 1


def test_bounds_on_quality_hold_for_what_was_measured(doubted: Policy) -> None:
    answer = doubted.answer([Request(max_kl=0.3)])[0]
    assert answer.feasible and answer.kl_high <= 0.3 and answer.origin in ("measured", "stratnet")
