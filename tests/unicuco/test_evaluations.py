"""The log of evaluations: on disk before it counts, once each, whatever is killed when."""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco import evaluations
from unicuco.errors import DiskFullError, EvaluationLogError
from unicuco.evaluations import Candidate, Evaluation, EvaluationLog, read_evaluations, write_evaluations

ROOT = Path(__file__).resolve().parents[2]
MODEL = KnownDamage(make_space(2))


def evaluation(number: int, **changes: Any) -> Evaluation:
    made = MODEL.evaluation(Candidate(f"{number:06d}", (0, number % 2, 0, number % 8), "prior"))
    return dataclasses.replace(made, **changes)


def same(one: Evaluation, two: Evaluation) -> bool:
    """Equality in which nan equals nan."""
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(two), strict=True)
    return all(a == b or (a != a and b != b) for a, b in pairs)


floats = st.floats(allow_nan=True, width=64)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        Evaluation,
        eval_id=texts,
        levels=st.lists(st.integers(0, 99), max_size=6).map(tuple),
        origin=texts,
        params=st.integers(0, 2**62),
        kept=floats,
        kl=floats,
        kl_reverse=floats,
        perplexity=floats,
        domains=st.lists(texts, max_size=3).map(tuple),
        domain_kl=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
        tokens=st.integers(0, 2**40),
        cost=floats,
        seconds=floats,
        dtype=texts,
        device=texts,
        threads=st.integers(0, 999),
        seed=st.integers(0, 2**31),
        preparation=texts,
        windows=texts,
        window_kl=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
        predicted_log_kl=floats,
        predicted_sigma=floats,
        policy_version=st.integers(0, 999),
        finished=st.floats(0, 2e9),
    )
)
def test_what_is_written_is_read(one: Evaluation) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_evaluations(Path(folder) / "a.parquet", [one])
        (found,) = read_evaluations(Path(folder) / "a.parquet")
    assert same(one, found)


def test_appending_twice_counts_once_also_after_reopening(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "log")
    assert log.append(evaluation(1)) and not log.append(evaluation(1, kl=9.0))
    again = EvaluationLog(tmp_path / "log")
    assert not again.append(evaluation(1)) and len(again) == 1 and "000001" in again
    assert again.append(evaluation(2))
    assert [e.eval_id for e in EvaluationLog(tmp_path / "log").read()] == ["000001", "000002"]
    assert again.read()[0].kl == evaluation(1).kl


def test_several_at_once_are_one_part_and_count_once(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "log")
    assert log.append() == 0 and not list((tmp_path / "log").glob("*"))
    assert log.append(evaluation(2), evaluation(1), evaluation(2, kl=9.0)) == 2
    assert log.append(evaluation(1), evaluation(3)) == 1
    assert len(list((tmp_path / "log").glob("part-*.parquet"))) == 2
    assert {e.eval_id: e.kl for e in EvaluationLog(tmp_path / "log").read()} == {
        e.eval_id: e.kl for e in (evaluation(1), evaluation(2), evaluation(3))
    }


def test_an_empty_log_is_no_error(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "not-there-yet")
    assert log.read() == [] and len(log) == 0
    log.compact()
    assert log.read() == []


def test_reading_follows_the_order_of_finishing(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path)
    for number, finished in ((3, 1.0), (1, 2.0), (2, 2.0), (0, 3.0)):
        log.append(evaluation(number, finished=finished))
    assert [e.eval_id for e in log.read()] == ["000003", "000001", "000002", "000000"]


def test_compacting_keeps_all(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path)
    for i in range(5):
        log.append(evaluation(i))
    before = log.read()
    for _ in range(2):
        log.compact()
        assert [path.name for path in tmp_path.iterdir()] == ["evaluations.parquet"]
        assert all(same(a, b) for a, b in zip(before, EvaluationLog(tmp_path).read(), strict=True))
    assert not log.append(evaluation(3)) and log.append(evaluation(7))
    log.compact()
    assert len(EvaluationLog(tmp_path)) == 6


def test_a_crash_while_compacting_leaves_duplicates_that_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EvaluationLog(tmp_path)
    for i in range(4):
        log.append(evaluation(i))
    removed: list[Path] = []
    unlink = Path.unlink

    def dies(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("part-"):
            if removed:
                raise KeyboardInterrupt
            removed.append(self)
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", dies)
    with pytest.raises(KeyboardInterrupt):
        log.compact()
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.parquet"))) == 4  # the whole and three parts
    assert [e.eval_id for e in EvaluationLog(tmp_path).read()] == [f"{i:06d}" for i in range(4)]


def test_two_processes_may_compact_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [EvaluationLog(tmp_path), EvaluationLog(tmp_path)]
    for i in range(4):
        logs[0].append(evaluation(i))
    write = evaluations.write_evaluations

    def slow(path: Path, found: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            write(path, found)
            return
        other = threading.Thread(target=logs[1].compact)  # all of it, after we have looked and before we write
        other.start()
        other.join()
        write(path, found)

    monkeypatch.setattr(evaluations, "write_evaluations", slow)
    logs[0].compact()
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["evaluations.parquet"]
    assert [e.eval_id for e in EvaluationLog(tmp_path).read()] == [f"{i:06d}" for i in range(4)]


def test_a_full_disk_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EvaluationLog(tmp_path)
    log.append(evaluation(0))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DiskFullError):
        log.append(evaluation(1))
    monkeypatch.undo()
    assert len(log) == 1 and [path.name for path in tmp_path.iterdir()] == ["part-000000.parquet"]
    assert log.append(evaluation(1))


def test_a_killed_writer_leaves_whole_parts_or_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.unicuco.test_evaluations import evaluation
from unicuco.evaluations import EvaluationLog
log = EvaluationLog(Path(sys.argv[1]))
for i in range(100_000):
    log.append(evaluation(i))
    print(i, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    time.sleep(0.0137)
    process.send_signal(signal.SIGKILL)
    told = 20 + len([line for line in process.stdout.read().split("\n") if line])
    process.wait()
    log = EvaluationLog(tmp_path)
    assert told <= len(log) <= told + 1, "everything that was counted is on disk"
    assert [e.eval_id for e in log.read()] == [f"{i:06d}" for i in range(len(log))]
    log.compact()
    assert len(EvaluationLog(tmp_path)) == len(log)


@pytest.mark.parametrize("how", ["empty", "truncated", "garbage", "other columns"])
def test_a_broken_part_names_its_file(how: str, tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path)
    log.append(evaluation(0))
    part = tmp_path / "part-000000.parquet"
    if how == "other columns":
        pq.write_table(pa.table({"something": ["else"]}), part)
    else:
        part.write_bytes({"empty": b"", "truncated": part.read_bytes()[:-50], "garbage": b"PAR1" * 20}[how])
    with pytest.raises(EvaluationLogError, match=r"part-000000\.parquet"):
        EvaluationLog(tmp_path)


def test_what_was_not_predicted_is_nan() -> None:
    assert math.isnan(evaluation(0).predicted_log_kl) and math.isnan(Candidate("0", (1,), "x").predicted_sigma)
