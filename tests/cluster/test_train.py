"""Training runs on a real tiny model, real evaluators and the real learner: ended, interrupted, killed, resumed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from rich.console import Console

from tests.cluster.tiny import make_model, make_text, options
from tests.unicuco.synthetic import geometry
from tests.unicuco.tables import made_up_table
from unicuco.evaluations import EvaluationLog, read_evaluations
from unicuco.latency import LatencyError, NamedTable
from unicuco.request import Request

if TYPE_CHECKING:
    from cluster.training import TrainConfig, TrainResult

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
BUDGET = 16
TOKENS = 64 * 32


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return make_model(folder / "model"), make_text(folder / "words.txt")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICUCO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def config_of(inputs: tuple[Path, Path], run: Path | str, evaluations: int = BUDGET, **changes: object) -> TrainConfig:
    from cluster.training import TrainConfig

    model, text = inputs
    calibration = {
        "domains": [{"name": "words", "source": str(text)}],
        "window_length": 32, "calibration_windows": 8, "search_windows": 64,
    }  # fmt: skip
    return TrainConfig.model_validate(
        {
            "model": str(model),
            "run": run,
            "preparation": {"calibration": calibration},
            "learner": {"evaluations": evaluations, "stratnet": {"steps": 20}},
            "evaluator": {"dtype": "float32"},
            **changes,
        }
    )


def finished_ids(run: Path) -> list[str]:
    """Ids of every evaluation on disk, repeated ones repeated."""
    return [e.eval_id for path in sorted((run / "evaluations").glob("*.parquet")) for e in read_evaluations(path)]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < end
        time.sleep(0.02)


def when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        end = time.monotonic() + 300
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@dataclass(frozen=True)
class Resumed:
    """A run that was interrupted and then resumed to its end."""

    run: Path
    before: list[str]
    """Ids on disk when it stopped."""
    result: TrainResult
    said: str


@pytest.fixture(scope="module")
def resumed(ray_session: None, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    from cluster.training import resume, train

    run = tmp_path_factory.mktemp("resumed") / "run"
    console = quiet()
    enough = lambda: len(list((run / "evaluations").glob("part-*"))) >= 3  # noqa: E731
    # Whoever starts pytest in the background of a script starts it with SIGINT ignored, and Python leaves that so.
    before_us = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = when(enough, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(config_of(inputs, run), console)
    watcher.join()
    signal.signal(signal.SIGINT, before_us)
    before = finished_ids(run)
    with (run / "progress.jsonl").open("a") as file:
        file.write('{"time": 17')  # a record that a crash cut short
    return Resumed(run, before, resume(run, console=console), said(console))


def test_interrupted_then_resumed_to_the_end(resumed: Resumed) -> None:
    run, before, ids = resumed.run, resumed.before, finished_ids(resumed.run)
    assert 3 <= len(before) < BUDGET
    assert f"Go on with: unicuco train --resume {run}" in resumed.said
    assert len(ids) == len(set(ids)) == BUDGET == resumed.result.evaluations
    assert set(before) <= set(ids)
    assert [path.name for path in (run / "evaluations").iterdir()] == ["evaluations.parquet"]
    assert not list(run.glob(".*.tmp"))


def test_a_run_says_what_it_is_and_how_it_went(resumed: Resumed, inputs: tuple[Path, Path]) -> None:
    about = json.loads((resumed.run / "run.json").read_text())
    assert about["tokens"] == TOKENS and about["dtype"] == "float32" and about["model"]["spec"] == str(inputs[0])
    assert {"unicuco", "torch", "transformers", "ray"} <= about["versions"].keys()
    policy = (resumed.result.policy / "policy.json").read_text()
    assert about["model"]["digest"] in policy and about["preparation"]["digest"] in policy
    records = [json.loads(line) for line in (resumed.run / "progress.jsonl").read_text().splitlines()]
    assert records[-1]["done"] == BUDGET and records[-1]["running"] == 0
    elapsed = [record["elapsed"] for record in records]
    assert elapsed == sorted(elapsed)


def test_resume_refuses_what_the_run_was_not_started_with(
    resumed: Resumed, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    from cluster.runs import RunError
    from cluster.training import resume, train

    run = Path(shutil.copytree(resumed.run, tmp_path / "run"))
    with pytest.raises(RunError, match="already holds a run: go on with it by 'unicuco train --resume"):
        train(config_of(inputs, run), quiet())
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(RunError, match="was started with another base model"):
        resume(run, model=str(other), console=quiet())
    moved = Path(shutil.copytree(inputs[0], tmp_path / "moved"))
    ended = quiet()
    done = resume(run, model=str(moved), console=ended)
    assert "has ended" in said(ended) and done.evaluations == BUDGET and done.seconds == 0
    assert done.heldout == resumed.result.heldout
    (run / "heldout.json").unlink()  # what a kill at the very end leaves: measured again
    again = resume(run, model=str(moved), console=quiet())
    assert again.evaluations == BUDGET and (run / "heldout.json").is_file()

    (run / "heldout.json").unlink()
    about = json.loads((run / "run.json").read_text())
    about["preparation"]["digest"] = "f" * 64
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="was started with preparation ffffffffffff"):
        resume(run, console=quiet())
    with pytest.raises(RunError, match="holds no run"):
        resume(tmp_path, console=quiet())


def test_kill_of_the_whole_run_loses_nothing(ray_session: None, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """A driver with a Ray of its own, killed together with every process it started; then resumed."""
    from cluster.runs import RunError
    from cluster.training import resume

    run = tmp_path / "run"
    scratch = tempfile.mkdtemp(prefix="ucct-")  # a killed Ray leaves its files; a short path, for its sockets
    alone = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"TMPDIR": scratch}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.train", *options(*inputs, run, 30)],
        cwd=ROOT, env=alone, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        wait_for(lambda: (run / "run.json").is_file(), process)
        with pytest.raises(RunError, match="Another process is training"):
            resume(run, console=quiet())
        wait_for(lambda: len(list((run / "evaluations").glob("part-*"))) >= 3, process)
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        for other in started:  # left alone, they notice within some seconds, and evaluate meanwhile
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
    assert process.wait(10) == -signal.SIGKILL, process.stdout.read() if process.stdout else ""
    psutil.wait_procs(started, timeout=20)
    shutil.rmtree(scratch, ignore_errors=True)
    before = {e.eval_id: e for e in EvaluationLog(run / "evaluations").read()}
    assert 3 <= len(before) < 30

    result = resume(run, console=quiet())
    ids = finished_ids(run)
    assert (result.evaluations, result.failed) == (30, 0), (run / "log.jsonl").read_text()
    assert len(ids) == len(set(ids)) == 30
    after = {e.eval_id: e for e in EvaluationLog(run / "evaluations").read()}
    assert all(repr(after[eval_id]) == repr(evaluation) for eval_id, evaluation in before.items())  # nan != nan
    assert len({e.levels for e in after.values()}) == 30, "no strategy was measured twice"


def test_setup_errors_leave_no_run_behind(ray_session: None, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    from actors.placement import PlacementError
    from cluster.training import train
    from unicuco.errors import CalibrationError, ModelError, SpaceError
    from unicuco.levels import SpaceConfig

    run = tmp_path / "run"
    with pytest.raises(ModelError, match="No folder at"):
        train(config_of((tmp_path / "nowhere", inputs[1]), run), quiet())
    with pytest.raises(CalibrationError, match="No calibration file"):
        train(config_of((inputs[0], tmp_path / "nowhere.txt"), run), quiet())
    with pytest.raises(PlacementError, match="No node of the cluster has room"):
        train(config_of(inputs, run, pool={"cpus": 64}), quiet())
    config = config_of(inputs, run)
    narrow = config.preparation.model_copy(update={"space": SpaceConfig(drop=False, neuron_multiple=256)})
    with pytest.raises(SpaceError, match=r"kept_low is 0\.4"):
        train(config.model_copy(update={"preparation": narrow}), quiet())
    made_up_table(geometry()).save(tmp_path / "other.json")
    with pytest.raises(LatencyError, match="made-up, whose blocks differ from those of the base model here"):
        train(config_of(inputs, run, latency=str(tmp_path / "other.json")), quiet())
    assert not run.exists()


def test_a_run_with_latency_keeps_its_table(ray_session: None, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """The file may go: resume, policy and report have what they need of it."""
    from cluster.training import resume, train
    from cluster.watching import watch
    from unicuco.models.load import load_base_model
    from unicuco.policy import Policy
    from unicuco.report import write_report

    file, run = tmp_path / "Box.json", tmp_path / "run"
    table = made_up_table(load_base_model(str(inputs[0]), "float32").geometry)
    table.save(file)
    train(config_of(inputs, run, 10, latency=str(file)), quiet())
    file.unlink()
    about = json.loads((run / "run.json").read_text())
    assert about["config"]["latency"]["name"] == "box" and about["config"]["latency"]["digest"] == table.digest
    policy = Policy.load(run)
    assert policy.costs.names == ("size", "latency") and policy.parts.latency == NamedTable.of("box", table)
    (answer,) = policy.answer([Request(preference={"latency": 0.6, "words": 0.4})])
    assert answer.latency_table == "box" and len(answer.preference) == 3
    (run / "heldout.json").unlink()  # as if it had been stopped just before its end
    result = resume(run, console=quiet())
    assert result.evaluations == len(EvaluationLog(run / "evaluations"))
    assert all(row["latency_ms"] > 0 for row in result.heldout)
    page = write_report(run).read_text()
    assert "table &#x27;box&#x27;" in page and "predicted ms" in page
    watch(str(run), once=True)
