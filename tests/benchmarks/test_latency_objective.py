"""The benchmark of training on latency: laws are what they say, and every contestant is compared on its own merits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.latency_objective import LEFT, compare, made_up, recorded, within
from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from tests.unicuco.tables import made_up_table
from unicuco.learner import LearnerConfig
from unicuco.request import Request
from unicuco.stratnet import StratNetConfig


def test_in_made_up_models_attentions_take_half_of_the_time_and_hold_a_fifth_of_the_parameters() -> None:
    law = made_up(0)
    nanoseconds, _ = law.table.table.nanoseconds(law.space)
    attention = np.array([site.kind == "attention" for site in law.space.sites])
    for costs, share in ((nanoseconds, 0.54), (law.space.tables["params"], 0.2)):
        assert costs[attention, 0].sum() / costs[:, 0].sum() == pytest.approx(share, abs=0.01)


def test_a_recorded_run_is_searched_both_ways_and_compared(tmp_path: Path) -> None:
    model = KnownDamage(make_space(5), seed=4)
    policy = search(make_learner(tmp_path, model, evaluations=20), model).policy()
    law = recorded(policy, made_up_table(model.space.geometry, attention=3.0, mlp=0.3))
    answers, learned = policy.answer([Request(kept=kept) for kept in (0.5, 0.7)]), policy.parts.surrogate.damage_model
    assert learned is not None
    x = torch.tensor([answer.strategy for answer in answers], dtype=torch.float64)
    np.testing.assert_allclose(law.log_kl(answers), learned.log_kl(x).detach().numpy())
    found = compare(law, LearnerConfig(evaluations=12, stratnet=StratNetConfig(width=16, steps=10)))
    assert set(found["against"]) == {"searched", "at_once", "retrained", "retrained_at_once", "cut", "size"}
    assert all(len(values) == len(LEFT) and np.isfinite(values).all() for values in found["against"].values())
    timed = policy.with_table("box", law.table.table)
    (answer,) = within(timed, np.array([8.0]))
    assert answer.latency_ms is not None and answer.latency_ms <= 8.0
