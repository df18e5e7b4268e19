"""What is shown and recorded of a run, and the run folder itself."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from actors.learner import Progress
from cluster.progress import (
    Rate,
    RunDisplay,
    best_at,
    best_points,
    duration_text,
    front_text,
    heldout_table,
    print_heldout,
    stages,
)
from cluster.runs import ProgressLog, RunError, RunFolder
from unicuco.learner import LearnerStatus


def progress(
    done: int,
    failed: int = 0,
    finished: bool = False,
    failures: tuple[tuple[str, str], ...] = (),
    ready: int = 2,
    placed: int = 2,
) -> Progress:
    front = [(0.4, 1.5), (0.7, 0.25), (0.9, 0.02)]
    status = LearnerStatus(done + failed + 2, done, failed, 2, 1, 0.75, front if done else [], done + failed, 3, 0.5)
    return Progress(status, ready, 2, placed, False, finished, failures, 0)


def test_rate_is_that_of_the_last_minute() -> None:
    rate = Rate()
    assert rate.update(100, 0.0) == 0.0  # a resumed run's earlier evaluations are not this session's speed
    assert rate.update(110, 10.0) == 1.0
    for second in range(11, 200):
        last = rate.update(110 + 2 * (second - 10), float(second))
    assert last == pytest.approx(2.0, rel=0.02)


def test_front_in_words() -> None:
    front = [(0.4, 1.5), (0.7, 0.25), (0.9, 0.02)]
    assert best_at(front, 0.8) == 0.25 and best_at(front, 0.3) is None
    assert front_text(best_points(front), 0.75) == "KL at kept 0.9: 0.020, 0.7: 0.250, 0.5: 1.500 · hypervolume 0.750"
    assert front_text([], 0.0).startswith("no front yet")
    assert (duration_text(59.6), duration_text(3723)) == ("1:00", "1:02:03")


def test_without_a_terminal_plain_lines_now_and_then(tmp_path: Path) -> None:
    out = io.StringIO()
    now = [0.0]
    log = ProgressLog(tmp_path / "progress.jsonl")
    with RunDisplay(Console(file=out, width=200), 40, log, clock=lambda: now[0]) as display:
        for second in range(25):
            now[0] = float(second)
            display.update(progress(second, failures=(("000007", "ValueError: no [such] thing"),)))
        display.update(progress(24, failed=1, finished=True), last=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Gave up evaluation 000007: ValueError: no [such] thing."
    assert len(lines) == 1 + 3 + 1  # at 0, 10, 20 and the end
    assert "20/40 evaluations  1.00/s  left 0:20" in lines[3]
    records = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert 12 <= len(records) <= 14
    assert records[-1] | {"time": 0} == {
        "time": 0, "elapsed": 24.0, "done": 24, "failed": 1, "running": 2, "version": 1, "hypervolume": 0.75,
        "evaluations_per_second": pytest.approx(25 / 24), "evaluators": 2, "stage": "done", "budget": 40, "spent": 25,
        "waiting": 3, "staleness": 0.5, "best": [[0.9, 0.02], [0.7, 0.25], [0.5, 1.5]],
    }  # fmt: skip


def test_waiting_for_machines_is_said_once_and_is_not_loading(tmp_path: Path) -> None:
    out = io.StringIO()
    now = [0.0]
    log = ProgressLog(tmp_path / "progress.jsonl")
    with RunDisplay(Console(file=out, width=200), 40, log, clock=lambda: now[0]) as display:
        for second in range(90):
            now[0] = float(second)
            display.update(progress(0, ready=0, placed=0 if second < 45 else 1))
    lines = out.getvalue().splitlines()
    (said,) = [line for line in lines if line.startswith("Waiting for room for 2 evaluator(s)")]
    assert "ray status" in said and lines.index(said) == 2  # after the lines of 0 s and of 10 s
    stages = [line.split("  ")[1] for line in lines if line != said]
    assert stages == ["waiting"] * 5 + ["loading"] * 4


def test_stages_are_told_when_they_end_and_when_they_say_that_they_begin() -> None:
    out = io.StringIO()
    with stages(Console(file=out, width=100)) as report:
        for done in range(1, 4):
            report("ordering units", done, 3)
        assert out.getvalue() == "ordering units: 3 of 3\n"
        report("measuring answers on fresh text", 0, 2)
        assert out.getvalue().splitlines()[1:] == ["measuring answers on fresh text ..."]
        report("measuring answers on fresh text", 0, 2)
        report("measuring answers on fresh text", 2, 2)
    assert out.getvalue().splitlines()[2:] == ["measuring answers on fresh text: 2 of 2"]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True)
    with RunDisplay(console, 40, ProgressLog(tmp_path / "progress.jsonl")) as display:
        display.update(progress(20))
    shown = out.getvalue()
    assert "20/40" in shown and "evaluating" in shown and "hypervolume 0.750" in shown


def test_records_go_on_where_a_killed_run_stopped(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"elapsed": 12.5, "done": 3}\n{"elapsed": 14.0, "do')
    log = ProgressLog(path)
    assert log.elapsed_before == 12.5
    assert path.read_text() == '{"elapsed": 12.5, "done": 3}\n'
    assert ProgressLog(tmp_path / "none.jsonl").elapsed_before == 0.0


def test_heldout_table() -> None:
    row = {
        "kept": 0.7, "kl_predicted": 0.21, "kl_low": 0.18, "kl_high": 0.24, "kl_heldout": 0.2, "kl_uniform_heldout": 0.4
    }  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=120).print(heldout_table([row, {**row, "kl_uniform_heldout": None}]))
    assert "0.2000" in out.getvalue() and "0.50" in out.getvalue()


def test_answers_worse_than_uniform_pruning_are_named() -> None:
    row = {"kept": 0.7, "kl_predicted": 0.2, "kl_low": 0.1, "kl_high": 0.3, "kl_heldout": 0.4}
    rows = [
        {**row, "kl_uniform_heldout": 0.5},
        {**row, "kept": 0.6, "kl_uniform_heldout": 0.3},
        {**row, "kept": 0.5, "kl_uniform_heldout": 0.39},
        {**row, "kept": 0.4, "kl_uniform_heldout": None},
    ]
    out = io.StringIO()
    print_heldout(rows, Console(file=out, width=120))
    assert "At kept 0.6 the answer is worse than uniform pruning" in out.getvalue()
    out = io.StringIO()
    print_heldout(rows[:1], Console(file=out, width=120))
    assert "worse" not in out.getvalue()


def test_a_run_folder_is_one_process_at_a_time_and_swept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(RunError, match="Another process is training"), folder.locked():
        pass
    assert not folder.path.exists(), "nothing came of it, nothing is left"
    (folder.path / ".policy.x1.tmp").mkdir(parents=True)
    (folder.evaluations).mkdir()
    (folder.evaluations / ".part-1.parquet.x.tmp").touch()
    folder.about.write_text("{}")
    with folder.locked():
        left = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*"))
    assert left == [".lock", "evaluations", "run.json"]


def test_existing_folders_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.refuse_existing()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds something else than a run"):
        folder.refuse_existing()
    folder.about.write_text('{"format": 0}')
    with pytest.raises(RunError, match="already holds a run"):
        folder.refuse_existing()
    with pytest.raises(RunError, match="another version"):
        folder.read()
    folder.about.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        folder.read()
