"""The picture of several domains, from a run whose policy a real learner wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unicuco.synthetic import FAST_NET, KnownDomains, make_learner, make_space
from unicuco.policy import Policy
from unicuco.report import write_report
from unicuco.report.domains import draw_domains, measured
from unicuco.report.run import PREFERRED_SHARES, PREFERRED_SIZES, Run, read_run
from unicuco.request import Request
from unicuco.storage import write_json


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "domains"
    model = KnownDomains(make_space(3), ("code", "prose"))
    net = FAST_NET.model_copy(update={"steps": 30})
    learner = make_learner(folder / "evaluations", model, evaluations=16, stratnet=net)
    for candidate in learner.ask(16):
        learner.tell(model.evaluation(candidate))
    learner.save_policy(folder / "policy")
    write_json(folder / "run.json", {"config": {"model": "made-up"}})
    return folder


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    return read_run(run_folder)


def test_it_shows_every_evaluation_and_what_the_policy_answers(run: Run, run_folder: Path) -> None:
    assert len(run.preferred) == len(PREFERRED_SIZES) * len(PREFERRED_SHARES)
    picture = draw_domains(run)
    assert picture is not None and picture.figure is not None
    axes = picture.figure.axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), measured(run, "code", "prose")[:, 1:])
    assert len(axes.collections[0].get_offsets()) == len(run.evaluations) == 16
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == len(PREFERRED_SHARES)]
    assert len(lines) == len(PREFERRED_SIZES)
    point = run.preferred[3]
    asked = Request(kept=point.bound, preference={"code": point.share, "prose": 1 - point.share})
    (answer,) = Policy.load(run_folder / "policy").answer([asked])
    assert (point.kl_first, point.kl_second) == pytest.approx((answer.domains["code"].kl, answer.domains["prose"].kl))
    assert "KL on code" in axes.get_xlabel() and "KL on prose" in axes.get_ylabel()
    assert "At kept 0.7, preferring code to prose" in picture.alt


def test_the_page_holds_it_where_there_are_two_domains(run_folder: Path, finished_run: Path, tmp_path: Path) -> None:
    page = write_report(run_folder, tmp_path / "two").read_text(encoding="utf-8")
    assert "One domain against another" in page and (tmp_path / "two" / "domains.png").is_file()
    one = write_report(finished_run, tmp_path / "one").read_text(encoding="utf-8")
    assert "One domain against another" not in one and not (tmp_path / "one" / "domains.png").exists()


def test_without_a_policy_the_measured_points_are_shown_alone(run_folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(bare / "policy")
    run = read_run(bare)
    picture = draw_domains(run)
    assert picture is not None and run.preferred == [] and "not been saved yet" in picture.caption


def test_three_domains_give_three_panels(tmp_path: Path) -> None:
    model = KnownDomains(make_space(3), ("a", "b", "c"))
    learner = make_learner(tmp_path / "evaluations", model, evaluations=16)
    for candidate in learner.ask(8):
        learner.tell(model.evaluation(candidate))
    write_json(tmp_path / "run.json", {})
    picture = draw_domains(read_run(tmp_path))
    assert picture is not None and picture.figure is not None
    panels = [axes for axes in picture.figure.axes if axes.get_xlabel()]
    assert [(axes.get_xlabel()[6], axes.get_ylabel()[6]) for axes in panels] == [("a", "b"), ("a", "c"), ("b", "c")]
