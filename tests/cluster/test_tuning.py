"""Sweeps end to end on Ray: on the log of a made-up run, and on a real tiny run that is then confirmed."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.confirming import check_confirmable, compare
from cluster.runs import RunError, RunFolder, describe_run, write_about
from cluster.train import config_values
from cluster.tuned import config_of
from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from unicuco.errors import TuningError
from unicuco.learner_config import LearnerConfig
from unicuco.stratnet import StratNetConfig
from unicuco.tuning.study import log_digest
from unicuco.tuning.sweep import Sweep

MODEL = KnownDamage(make_space(3), seed=3)
LAME = StratNetConfig(width=16, steps=40, learning_rate=1e-6)
"""A network that hardly learns: any sound learning rate beats it."""
BASE = LearnerConfig(evaluations=20, batch=10, margins=0, stratnet=LAME)
SWEEP: dict[str, Any] = {
    "vary": {"stratnet.learning_rate": [1e300, 5e-3]}, "finalists": 1, "seeds": 3, "cuts": (0.4, 0.7),
}  # fmt: skip


@pytest.fixture(scope="module")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, of a base model that is only a formula."""
    run = tmp_path_factory.mktemp("made-up") / "run"
    learner = make_learner(run / "evaluations", MODEL, **BASE.model_dump(exclude={"evaluations"}), evaluations=20)
    search(learner, MODEL).save_policy(run / "policy")
    config = {"model": "made-up", "learner": BASE.model_dump(mode="json"), "preparation": {"calibration": {}}}
    write_about(RunFolder(run), describe_run(config, model={}, preparation={"folder": "/nowhere"}, seed=0))
    return run


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.ray
def test_a_sweep_finds_the_better_setting_and_goes_past_a_broken_one(ray_session: None, made_up_run: Path) -> None:
    from cluster.training import TrainConfig
    from cluster.tuning import TuneConfig, read_recorded, tune

    before, console = log_digest(read_recorded(made_up_run).done), quiet()
    result = tune(TuneConfig(run=made_up_run, sweep=Sweep.model_validate(SWEEP)), console)
    assert result.winner == {"stratnet.learning_rate": 5e-3}
    assert len(result.halving.scores) == 3 + 2 * 3
    text = said(console)
    assert 'Failed: {"stratnet.learning_rate": 1e+300}, seed 0: ' in text and "Traceback" not in text
    assert "Finals: the default and the best, 3 seeds" in text and "9/9 trials" in text
    # Nothing is left but the two files, and train takes one of them as it is.
    assert {path.name for path in (made_up_run / "tune").iterdir()} == {"config.json", "trials.json"}
    values = config_values({"config": result.config_file, "model": "m", "run": made_up_run.parent / "next"})
    learner = TrainConfig.model_validate(values).learner
    assert learner.stratnet == LAME.model_copy(update={"learning_rate": 5e-3})
    trials = json.loads(result.trials_file.read_text())
    assert trials["log"]["digest"] == before == log_digest(read_recorded(made_up_run).done)
    assert len(trials["trials"]) == 9 and trials["settings"][0] == {} and trials["versions"]["ray"]
    broken = trials["settings"].index({"stratnet.learning_rate": 1e300})
    assert [trial["setting"] for trial in trials["trials"] if trial["error"]] == [broken]


def test_a_process_that_dies_fails_its_trial_alone() -> None:
    from actors.tuning import _HalvingSearcher
    from unicuco.tuning.halving import Halving
    from unicuco.tuning.study import Score

    halving, counts = Halving(3, 1, 3, seed=0), []
    searcher = _HalvingSearcher(halving, counts.append)
    jobs = [searcher.suggest(trial) for trial in "abc"]
    assert [job["setting"] for job in jobs] == [0, 1, 2] and searcher.suggest("d") is None
    later = tuple(range(10))
    searcher.on_trial_complete("b", None, error=True)
    searcher.on_trial_complete("a", {"score": Score(-1.0, 1.0, later=later)})
    searcher.on_trial_complete("c", {"score": Score(-2.0, 1.0, later=later)})
    assert list(halving.failures.values()) == ["its process died"] and counts == [1, 2, 3]
    assert {searcher.suggest(str(i))["setting"] for i in range(6)} == {0, 2}


def test_a_default_that_breaks_is_an_error_of_the_sweep() -> None:
    from ray.tune.search import Searcher

    from actors.tuning import _HalvingSearcher
    from unicuco.tuning.halving import Halving

    searcher = _HalvingSearcher(Halving(3, 1, 3, seed=0), lambda done: None)
    searcher.suggest("a")
    searcher.on_trial_complete("a", None, error=True)
    assert searcher.suggest("b") == Searcher.FINISHED and isinstance(searcher.error, TuningError)


def test_what_cannot_be_swept_is_said_before_any_ray(made_up_run: Path, tmp_path: Path) -> None:
    from cluster.tuning import TuneConfig, _output, read_recorded, tune

    with pytest.raises(TuningError, match="holds no evaluations"):
        tune(TuneConfig(run=tmp_path / "nowhere"))
    recorded = read_recorded(made_up_run)
    assert recorded.learner == BASE and not np.isnan(recorded.damage).any()
    with pytest.raises(TuningError, match="say where the results go with --output"):
        _output(TuneConfig(run=made_up_run), made_up_run, replace(recorded, about=None))
    bare = shutil.copytree(made_up_run, tmp_path / "bare")
    shutil.rmtree(bare / "policy")
    with pytest.raises(TuningError, match="no policy that has its search space"):
        read_recorded(bare)
    with pytest.raises(TuningError, match="has not ended"):
        tune(TuneConfig(run=made_up_run, confirm=tmp_path / "new"))


def test_what_could_not_be_confirmed_is_refused_before_any_trial(made_up_run: Path, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="a log without a run"):
        check_confirmable(tmp_path, None, tmp_path / "new")
    (tmp_path / "heldout.json").write_text("[]")
    check_confirmable(tmp_path, {}, tmp_path / "new")
    with pytest.raises(RunError, match="already holds a run"):
        check_confirmable(tmp_path, {}, made_up_run)


def test_runs_are_compared_where_both_were_measured() -> None:
    before = [{"kept": 0.9, "kl_heldout": 0.1}, {"kept": 0.7, "kl_heldout": 0.4}]
    after = [{"kept": 0.7, "kl_heldout": 0.3}, {"kept": 0.5, "kl_heldout": 0.9}]
    assert compare(before, after) == [{"kept": 0.7, "before": 0.4, "after": 0.3}]


@pytest.mark.ray
@pytest.mark.slow
def test_the_winner_is_confirmed_by_a_real_run(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.training import TrainConfig, train
    from cluster.tuning import TuneConfig, tune
    from tests.cluster.tiny import make_model, make_text

    monkeypatch.setenv("UNICUCO_CACHE", str(tmp_path / "cache"))
    calibration = {
        "domains": [{"name": "words", "source": str(make_text(tmp_path / "words.txt"))}],
        "window_length": 32, "calibration_windows": 8, "search_windows": 64,
    }  # fmt: skip
    config = TrainConfig.model_validate(
        {
            "model": str(make_model(tmp_path / "model")),
            "run": tmp_path / "run",
            "preparation": {"calibration": calibration},
            "learner": BASE.model_dump(),
            "evaluator": {"dtype": "float32"},
        }
    )
    train(config, quiet())
    console, new = quiet(), tmp_path / "new"
    result = tune(TuneConfig(run=tmp_path / "run", sweep=Sweep.model_validate(SWEEP), confirm=new), console)
    about = json.loads((new / "run.json").read_text())
    assert about["config"]["learner"]["stratnet"] == config_of(result)["learner"]["stratnet"]
    assert (
        about["preparation"]["digest"]
        == json.loads((tmp_path / "run" / "run.json").read_text())["preparation"]["digest"]
    )
    confirmed = json.loads((tmp_path / "run" / "tune" / "confirmed.json").read_text())
    assert [row["kept"] for row in confirmed["sizes"]] == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert "One run each" in said(console)
