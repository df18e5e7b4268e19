"""A run at a URI: interrupted, its machine lost, gone on with elsewhere, and read from anywhere."""

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from cluster import lease
from tests.cluster.test_train import ROOT, config_of, quiet, said, wait_for, when
from tests.cluster.tiny import make_model, make_text, options
from unicuco.errors import EvaluationLogError, PolicyError
from unicuco.evaluations import Evaluation, read_evaluations
from unicuco.remote.documents import latest
from unicuco.remote.store import Store

pytestmark = pytest.mark.ray
BUDGET = 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return make_model(folder / "model"), make_text(folder / "words.txt")


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Path]:
    """A disk of its own, as far as UniCuCo is concerned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICUCO_CACHE", str(folder))
        patch.setattr(lease, "DEAD_SECONDS", 3 * lease.BEAT_SECONDS)
        yield folder


def at(uri: str) -> list[Evaluation]:
    """Every evaluation at the store, repeated ones repeated."""
    folder = Path(uri.removeprefix("file://")) / "evaluations"
    return [e for path in sorted(folder.glob("*.parquet")) for e in read_evaluations(path)]


@dataclass(frozen=True)
class Ended:
    uri: str
    before: list[Evaluation]
    """At the store when the first machine was lost."""
    said: str


@pytest.fixture(scope="module")
def ended(ray_session: None, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    from cluster.training import resume, train

    root = tmp_path_factory.mktemp("remote")
    uri = f"file://{root}/bucket/runs/first"
    console = quiet()
    with machine(root / "one") as disk:
        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        stop = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        watcher = when(lambda: len(Store(uri).names("evaluations")) >= 3, stop)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(inputs, uri, BUDGET), console)
        watcher.join()
        signal.signal(signal.SIGINT, usual)
        shutil.rmtree(disk)
    before = at(uri)
    with machine(root / "two"):
        result = resume(uri, console=console)
        assert result.evaluations == BUDGET and result.heldout
    return Ended(uri, before, said(console))


def test_another_machine_goes_on_where_the_first_was_lost(ended: Ended) -> None:
    after = at(ended.uri)
    assert 3 <= len(ended.before) < BUDGET
    assert f"Go on with: unicuco train --resume {ended.uri}" in ended.said
    assert len(after) == len({e.eval_id for e in after}) == len({e.levels for e in after}) == BUDGET
    kept = {e.eval_id: repr(e) for e in after}
    assert all(kept[e.eval_id] == repr(e) for e in ended.before)
    assert len(Store(ended.uri).names("evaluations")) == 1
    assert Store(ended.uri).names(lease.SUBJECT) == {}
    progress = latest(Store(ended.uri), "progress")
    assert progress is not None
    records = [json.loads(line) for line in progress.data.splitlines()]
    elapsed = [record["elapsed"] for record in records]
    assert records[-1]["done"] == BUDGET and elapsed == sorted(elapsed)


def test_every_command_reads_it_from_a_third_machine(
    ended: Ended, inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.answering import run_answer
    from cluster.pruning import run_prune
    from cluster.watching import watch
    from unicuco.remote.fetch import run_folder
    from unicuco.report import write_report

    with machine(tmp_path / "three") as disk:
        run_answer(ended.uri, {"kept": 0.7}, None, tmp_path / "answers.jsonl")
        assert json.loads((tmp_path / "answers.jsonl").read_text())["feasible"]
        out = io.StringIO()
        watch(ended.uri, Console(file=out, width=200))
        assert "done" in out.getvalue() and f"{BUDGET}/{BUDGET} evaluations" in out.getvalue()
        page = write_report(run_folder(ended.uri), tmp_path / "report").read_text()
        assert "The measured front" in page
        asked = {"kept": 0.7}
        given = ("hetero", None, "float32", "cpu", 1, True, False, False)
        run_prune(ended.uri, asked, tmp_path / "checkpoint", *given)
        assert (tmp_path / "checkpoint" / "config.json").is_file()
        assert [path.name for path in (disk / "preparations").iterdir() if path.is_dir()], "fetched, not built again"


def test_what_is_at_a_uri_is_not_overwritten_and_what_is_not_is_said(
    ended: Ended, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    from cluster.runs import RunError
    from cluster.training import resume, train
    from cluster.watching import watch
    from unicuco.errors import CalibrationError
    from unicuco.remote.fetch import policy_folder, run_folder

    with machine(tmp_path / "four") as disk:
        with pytest.raises(RunError, match="already holds a run: go on with it by 'unicuco train --resume file:///"):
            train(config_of(inputs, ended.uri), quiet())
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/notes.txt").write_text("notes")
        with pytest.raises(RunError, match="holds something else than a run"):
            train(config_of(inputs, (tmp_path / "mine").as_uri()), quiet())
        with pytest.raises(RunError, match="exists in one process only"):
            train(config_of(inputs, "memory://run"), quiet())
        empty = (tmp_path / "empty").as_uri()
        for wrong, command in ((RunError, resume), (RunError, watch), (EvaluationLogError, run_folder)):
            with pytest.raises(wrong, match=r"holds no run|is not a training run"):
                command(empty)  # type: ignore[operator]
        with pytest.raises(PolicyError, match="No policy at file:///"):
            policy_folder(empty)
        with pytest.raises(CalibrationError, match="No calibration file"):
            train(config_of((inputs[0], tmp_path / "nowhere.txt"), empty), quiet())
        assert not list((tmp_path / "empty").rglob("*.*")) and not list((disk / "runs").iterdir())


@pytest.mark.slow
def test_a_killed_machine_loses_nothing_and_another_waits_for_it(
    ray_session: None, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """A driver with a Ray of its own, killed together with every process it started, and its disk removed."""
    from cluster.runs import RunError
    from cluster.training import resume

    uri = f"file://{tmp_path}/bucket/run"
    store = Store(uri)
    scratch = tempfile.mkdtemp(prefix="ucct-")  # a killed Ray leaves its files; a short path, for its sockets
    alone = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    alone |= {"TMPDIR": scratch, "UNICUCO_CACHE": str(tmp_path / "one")}
    command = options(*inputs, Path("RUN"), 30)
    command[command.index("RUN")] = uri
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.train", *command],
        cwd=ROOT, env=alone, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    started: list[psutil.Process] = []
    try:
        wait_for(lambda: latest(store, "run") is not None, process)
        with machine(tmp_path / "two"), pytest.raises(RunError, match=r"Another process .* is training in"):
            resume(uri, console=quiet())
        wait_for(lambda: len(store.names("evaluations")) >= 3, process)
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        for other in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
    assert process.wait(10) == -signal.SIGKILL, process.stdout.read() if process.stdout else ""
    psutil.wait_procs(started, timeout=20)
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(tmp_path / "one")
    before = {e.eval_id: repr(e) for e in at(uri)}
    assert 3 <= len(before) < 30
    console = quiet()
    with machine(tmp_path / "two"):
        assert resume(uri, console=console).evaluations == 30
    assert "was last written by a process on" in said(console)
    after = {e.eval_id: repr(e) for e in at(uri)}
    assert len(at(uri)) == len(after) == 30 and all(after[name] == what for name, what in before.items())
