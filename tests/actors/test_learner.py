"""The learner actor on a real Ray: a whole run, what survives a kill, and how fast it answers while it trains."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.factory import Factory
from actors.learner import Progress, create_learner
from actors.placement import PoolPlan
from actors.pool import PoolSetup
from unicuco.evaluations import EvaluationLog, read_evaluations

pytestmark = pytest.mark.ray


class Run:
    """A learner actor on stand-ins, in a folder of its own."""

    def __init__(self, folder: Path, evaluators: int = 2, seconds: float = 0.0, **learner: Any) -> None:
        self.log, self.notes, self.policy = folder / "evaluations", folder / "notes", folder / "policy"
        self.notes.mkdir(exist_ok=True)
        evaluator = Factory("tests.actors.standins:QuadraticEvaluator", {"notes": self.notes, "seconds": seconds})
        setup = PoolSetup(evaluator, PoolPlan(evaluators, 1, 0, 1))
        arguments = {"evaluations": self.log, **learner}
        self.actor = create_learner(Factory("tests.actors.standins:CountingLearner", arguments), setup, self.policy)

    def call(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments))

    def until(self, done: int, seconds: float = 60.0) -> Progress:
        """Polls until ``done`` evaluations are in; checks the capacity rule each time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            progress = self.call("progress")
            status = progress.status
            assert status.submitted == status.done + status.failed + status.running
            if status.done >= done:
                return progress
            time.sleep(0.02)
        raise AssertionError(f"{done} evaluations expected, {status} after {seconds} s")


@pytest.fixture
def start(ray_session: None, tmp_path: Path) -> Iterator[Any]:
    """Starts runs and ends their actors."""
    import ray

    runs: list[Run] = []

    def make(**arguments: Any) -> Run:
        runs.append(Run(tmp_path, **arguments))
        return runs[-1]

    yield make
    for run in runs:
        ray.kill(run.actor)


def test_a_run_ends_with_every_evaluation_that_can_be_made_once(start: Any) -> None:
    run = start(budget=14, seconds=0.05, broken=(3,), every=5)
    status = run.call("finish")
    assert (status.submitted, status.done, status.failed, status.running) == (14, 13, 1, 0)
    assert sorted(e.eval_id for e in EvaluationLog(run.log).read()) == sorted(f"e{i}" for i in range(14) if i != 3)
    assert status.version >= 2
    assert (run.policy / "version").read_text() == str(status.version)
    progress = run.call("progress")
    assert progress.finished
    assert [eval_id for eval_id, _ in progress.failures] == ["e3"]


def test_the_log_says_what_happened_in_whole_json_lines(start: Any, tmp_path: Path) -> None:
    run = start(budget=12, broken=(3,), every=6)
    run.call("finish")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all({"time", "level", "event", "pid"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    assert events[0] == "began" and events[-1] == "ended"
    assert lines[-1]["done"] == 11 and lines[-1]["failed"] == 1
    assert events.count("returned") == 2 and events.count("evaluator_ready") == 2
    (given_up,) = [line for line in lines if line["event"] == "given_up"]
    assert given_up["eval_id"] == "e3" and "no such thing" in given_up["reason"] and given_up["level"] == "error"
    assert [line["policy_version"] for line in lines if line["event"] == "trained"][-1] == lines[-1]["policy_version"]


def test_ask_and_status_answer_within_milliseconds_while_it_trains(start: Any) -> None:
    run = start(budget=1000, seconds=0.3, every=2, train_seconds=4.0)
    run.until(2)
    while not run.call("progress").training:
        time.sleep(0.01)
    times = []
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        began = time.perf_counter()
        run.call("ask", 1)
        run.call("status")
        times.append((time.perf_counter() - began) / 2)
        time.sleep(0.005)
    assert run.call("progress").training or run.call("status").version > 0
    times.sort()
    assert len(times) > 50
    assert times[len(times) // 2] < 0.05
    assert times[int(0.95 * len(times))] < 0.25  # one slow call is the machine's; all of them would be ours
    done = run.call("status").done
    assert done > 2, "evaluations go on while it trains"
    began = time.monotonic()
    run.call("stop")
    assert time.monotonic() - began < 10


def test_a_killed_learner_starts_again_from_the_log(start: Any) -> None:
    run = start(budget=20, seconds=0.15)
    run.until(4)
    os.kill(run.call("pid"), signal.SIGKILL)
    status = run.call("finish")
    assert (status.submitted, status.done, status.running) == (20, 20, 0)
    on_disk = [e.eval_id for path in run.log.glob("part-*.parquet") for e in read_evaluations(path)]
    assert sorted(on_disk) == sorted(f"e{i}" for i in range(20)), "each exactly once"


def test_a_second_learner_waits_for_the_first_to_be_gone(start: Any) -> None:
    import ray

    first = start(budget=30, seconds=0.2, evaluators=1)
    first.until(2)
    second = start(budget=30, evaluators=1)
    answer = second.actor.progress.remote()
    assert ray.wait([answer], timeout=1.5)[0] == []
    done = first.call("status").done
    ray.kill(first.actor)
    assert ray.get(answer).status.done >= done
    assert second.call("finish").done == 30


def test_a_log_that_cannot_be_written_ends_the_run_with_its_sentence(start: Any, tmp_path: Path) -> None:
    from actors.runtime import original_error
    from unicuco.errors import DiskFullError

    (tmp_path / "file").write_text("not a folder")
    run = start(budget=3, evaluations=tmp_path / "file" / "evaluations")
    with pytest.raises(Exception) as caught:
        run.call("finish")
    assert isinstance(original_error(caught.value), DiskFullError)
    assert "cannot be written" in str(original_error(caught.value))


def test_prometheus_finds_how_the_run_stands(start: Any) -> None:
    import ray

    run = start(budget=12, seconds=0.02, broken=(3,), every=5)
    run.call("finish")
    (port,) = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    name = run.policy.parent.name
    wanted = {"spent": 12, "policy_version": run.call("status").version, "evaluators": 0, "training": 0, "running": 0}
    until, found = time.monotonic() + 60, dict[str, float]()
    while time.monotonic() < until and found != wanted:
        time.sleep(1)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
                text = page.read().decode()
        except OSError:  # the node's agent begins to listen some time after the node does
            continue
        lines = [line for line in text.splitlines() if f'run="{name}"' in line]
        values = {line.split("{")[0].removeprefix("ray_unicuco_run_"): float(line.rsplit(" ", 1)[1]) for line in lines}
        found = {key: values.get(key, -1.0) for key in wanted}
    assert found == wanted
    assert values["evaluations_total"] == 11 and values["given_up_total"] == 1 and values["returned_total"] == 2
    assert values["evaluation_seconds_count"] == 11
