"""A run watched from another terminal: what is shown, when it ends, and that nothing is touched."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from cluster.progress import RunDisplay
from cluster.runs import ProgressLog, RunError, RunFolder
from cluster.watching import SILENT_SECONDS, last_record, watch
from tests.cluster.test_train_progress import progress

ROW = {"kept": 0.7, "kl_predicted": 0.21, "kl_low": 0.18, "kl_high": 0.24, "kl_heldout": 0.2, "kl_uniform_heldout": 0.4}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.path.mkdir()
    found.about.write_text(json.dumps({"format": 1, "model": {"spec": "made-up"}}))
    return found


def record(folder: RunFolder, done: int, finished: bool = False) -> None:
    with RunDisplay(Console(file=io.StringIO()), 40, ProgressLog(folder.progress)) as display:
        display.update(progress(done, finished=finished), last=True)


def shown(folder: RunFolder, terminal: bool = False, **options: object) -> str:
    out = io.StringIO()
    watch(folder.path, Console(file=out, width=160, force_terminal=terminal), **options)  # type: ignore[arg-type]
    return out.getvalue()


def test_once_says_how_it_is_now(folder: RunFolder) -> None:
    assert "No evaluation has come back yet" in shown(folder, once=True)
    record(folder, 20)
    assert "evaluating  20/40 evaluations" in shown(folder, once=True)
    assert "KL at kept 0.9: 0.020, 0.7: 0.250" in shown(folder, once=True)
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    shown(folder, once=True)
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before, "who watches touches nothing"


@pytest.mark.parametrize("terminal", [False, True])
def test_it_follows_to_the_end_and_shows_the_table(folder: RunFolder, terminal: bool) -> None:
    steps = iter([lambda: record(folder, 10), lambda: record(folder, 40, finished=True)])

    def sleep(seconds: float) -> None:
        step = next(steps, None)
        if step:
            step()
        else:
            folder.heldout.write_text(json.dumps([ROW]))

    said = shown(folder, terminal, sleep=sleep)
    assert "40/40" in said or "40 of 40" in said
    assert "KL on fresh text, by size" in said and "0.50" in said


def test_a_silent_run_is_told_from_a_finished_one(folder: RunFolder) -> None:
    record(folder, 20)
    later = time.time() + SILENT_SECONDS + 60
    assert "No news for 3:0" in shown(folder, once=True, clock=lambda: later)
    record(folder, 40, finished=True)
    assert "No news" not in shown(folder, once=True, clock=lambda: later)


def test_a_line_that_is_being_written_is_not_read(folder: RunFolder) -> None:
    record(folder, 20)
    with open(folder.progress, "a", encoding="utf-8") as file:
        file.write('{"time": 1, "done": 2')
    found = last_record(folder.progress)
    assert found is not None and found["done"] == 20


def test_records_of_before_are_shown_too(folder: RunFolder) -> None:
    old = {"time": time.time(), "elapsed": 5.0, "done": 3, "failed": 0, "running": 2, "version": 1, "hypervolume": 0.1}
    folder.progress.write_text(json.dumps({**old, "evaluations_per_second": 0.5, "evaluators": 2}) + "\n")
    assert "3/? evaluations" in shown(folder, once=True)


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        watch(tmp_path)
