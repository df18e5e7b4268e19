"""The predicted front comes from the policy itself, asked as any user asks it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unicuco.report.made_up import MadeUpRun
from unicuco.evaluations import EvaluationLog
from unicuco.learner import Learner, LearnerConfig
from unicuco.policy import Policy
from unicuco.report import write_report
from unicuco.report.front import draw_front
from unicuco.report.run import PREDICTED_SIZES, read_run
from unicuco.request import Request
from unicuco.stratnet import StratNetConfig


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policy a real learner wrote."""
    made_up = MadeUpRun(blocks=2)
    run = made_up.write(tmp_path_factory.mktemp("runs") / "trained", rounds=1)
    damage = made_up.damage[:, None] * np.minimum(made_up.space.levels, 1) ** 1.5
    config = LearnerConfig(evaluations=100, stratnet=StratNetConfig(steps=50))
    learner = Learner(made_up.space, damage, config, EvaluationLog(run / "evaluations"))
    learner.train()
    learner.save_policy(run / "policy")
    return run


def test_predicted_front_is_what_the_policy_answers(trained_run: Path) -> None:
    predicted = read_run(trained_run).predicted
    assert len(predicted) == PREDICTED_SIZES
    assert all(p.kl_low <= p.kl <= p.kl_high for p in predicted)
    policy = Policy.load(trained_run / "policy")
    answer = policy.answer([Request(kept=policy.scale.kept_low)])[0]
    assert predicted[0] == pytest.approx((answer.kept, answer.kl, answer.kl_low, answer.kl_high))
    figure = draw_front(read_run(trained_run)).figure
    assert figure is not None
    line = next(line for line in figure.axes[0].lines if line.get_label() == "policy's prediction")
    np.testing.assert_allclose(line.get_xydata(), [(p.kept, p.kl) for p in predicted])


def test_a_policy_that_cannot_be_read_leaves_the_rest_of_the_report(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / "policy" / "stratnet.safetensors").write_bytes(b"no")
    assert read_run(run).predicted == []
    assert "own predictions are left out" in write_report(run).read_text(encoding="utf-8")
