"""The log at a URI: an evaluation counts once a store has it whole, and the folder may be lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.unicuco.remote.faulty import writes_fail
from tests.unicuco.test_evaluations import evaluation, same
from unicuco.errors import RemoteError
from unicuco.remote.log import RemoteLog, pull_evaluations
from unicuco.remote.store import Store

ROOT = Path(__file__).resolve().parents[3]


def ids(log: RemoteLog) -> list[str]:
    return [e.eval_id for e in log.read()]


def test_another_machine_finds_every_evaluation(tmp_path: Path) -> None:
    uri = f"memory://{uuid.uuid4().hex}/run"
    log = RemoteLog(tmp_path / "here", Store(uri))
    log.append(evaluation(1), evaluation(2))
    log.append(evaluation(2), evaluation(3))
    there = RemoteLog(tmp_path / "there", Store(uri))
    assert ids(there) == ["000001", "000002", "000003"]
    assert all(same(a, b) for a, b in zip(log.read(), there.read(), strict=True))
    there.append(evaluation(4))
    shutil.rmtree(tmp_path / "here")
    assert ids(RemoteLog(tmp_path / "here", Store(uri))) == [f"{i:06d}" for i in range(1, 5)]


def test_what_could_not_be_sent_does_not_count(tmp_path: Path) -> None:
    store = Store(f"faulty://{tmp_path}/store", pauses=())
    log = RemoteLog(tmp_path / "here", store)
    log.append(evaluation(1))
    with writes_fail("part-000002"), pytest.raises(RemoteError):
        log.append(evaluation(2))
    assert "000002" not in log and ids(log) == ["000001"]
    assert len(store.names("evaluations")) == 2, "half of it lies there"
    for folder in ("here", "there"):
        assert ids(RemoteLog(tmp_path / folder, store)) == ["000001"]
    log.append(evaluation(2))
    assert ids(RemoteLog(tmp_path / "there", store)) == ["000001", "000002"]


def test_the_folder_is_a_mirror(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    log = RemoteLog(tmp_path / "here", store)
    log.append(evaluation(1))
    shutil.copy(next((tmp_path / "here").iterdir()), tmp_path / "here" / "part-000009-0123456789abcdef.parquet")
    pull_evaluations(store, tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} == set(store.names("evaluations"))


def test_compacting_keeps_what_others_add(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    log, service = RemoteLog(tmp_path / "here", store), RemoteLog(tmp_path / "there", store)
    for number in range(5):
        log.append(evaluation(number))
    service.append(evaluation(7))
    log.compact()
    assert len(store.names("evaluations")) == 1 == len(list((tmp_path / "here").iterdir()))
    service.append(evaluation(8))
    log.compact()
    log.compact()
    assert len(store.names("evaluations")) == 1
    assert ids(RemoteLog(tmp_path / "third", store)) == [f"{i:06d}" for i in (0, 1, 2, 3, 4, 7, 8)]


WRITER = """
import sys
from pathlib import Path
from tests.unicuco.remote import faulty
from tests.unicuco.test_evaluations import evaluation
from unicuco.remote.log import RemoteLog
from unicuco.remote.store import Store
log = RemoteLog(Path(sys.argv[1]), Store(sys.argv[2]))
for number in range(100_000):
    log.append(evaluation(number))
    print(number, flush=True)
"""


@pytest.mark.parametrize("scheme", ["file", "faulty"])
def test_a_killed_writer_loses_nothing_that_counted(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}://{tmp_path}/store"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "here"), uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    said = process.stdout.read().split()
    process.wait()
    from tests.unicuco.remote import faulty  # noqa: F401  registers the filesystem

    log = RemoteLog(tmp_path / "there", Store(uri))
    counted = int(said[-1]) + 1 if said else 1
    assert counted > 3 and counted <= len(log) <= counted + 1
    assert ids(log) == [f"{i:06d}" for i in range(len(log))]
    log.append(evaluation(99_999))
