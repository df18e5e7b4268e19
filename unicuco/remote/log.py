"""The log of evaluations at a URI: an evaluation counts once its part lies there, whole.

The local folder mirrors it, so that it is read at the speed of the disk. Its parts are named by their digest, and never
change: what is here needs not be fetched again, and what an upload left half-written is passed over.
"""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unicuco.evaluations import Evaluation, EvaluationLog, write_evaluations
from unicuco.remote.documents import short_digest
from unicuco.remote.store import Store
from unicuco.storage import atomic_file

SUBJECT = "evaluations"
FETCHES = 8
"""Parts fetched at the same time: each is small, and a store answers after some 50 ms."""
_PART = re.compile(r"^[\w.-]+-([0-9a-f]{16})\.parquet$")


def pull_evaluations(store: Store, folder: Path) -> set[str]:
    """Makes ``folder`` hold the whole parts at ``store``, and no others; returns their names.

    Raises:
        RemoteError: the store cannot be read.
    """
    there = {name for name in store.names(SUBJECT) if _PART.match(name)}
    here = {path.name for path in folder.glob("*.parquet")} if folder.is_dir() else set()
    new = sorted(there - here)
    whole = here & there
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(FETCHES, len(new)), thread_name_prefix="fetch") as pool:
            fetched = pool.map(lambda name: _fetch(store, name, folder), new)
            whole |= {name for name, got_it in zip(new, fetched, strict=True) if got_it}
    for name in here - there:
        (folder / name).unlink(missing_ok=True)
    return whole


def _fetch(store: Store, name: str, folder: Path) -> bool:
    found = _PART.match(name)
    try:
        data = store.read(f"{SUBJECT}/{name}")
    except FileNotFoundError:  # merged into another one meanwhile; it is in the next listing
        return False
    if found is None or short_digest(data) != found[1]:
        return False
    with atomic_file(folder / name) as scratch:
        scratch.write_bytes(data)
    return True


class RemoteLog(EvaluationLog):
    """An ``EvaluationLog`` whose place of truth is a store, and whose folder mirrors it.

    One process at a time uses the folder; others may append to the store, each with ids of its own.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        """Raises RemoteError where the store cannot be read."""
        self.store = store
        pull_evaluations(store, Path(folder))
        super().__init__(folder)

    def _write(self, name: str, evaluations: list[Evaluation]) -> None:
        with tempfile.TemporaryDirectory(prefix="unicuco-") as scratch:
            path = Path(scratch) / "part.parquet"
            write_evaluations(path, evaluations)
            data = path.read_bytes()
        named = f"{name}-{short_digest(data)}.parquet"
        self.store.put(f"{SUBJECT}/{named}", data)
        with atomic_file(self.folder / named) as copy:
            copy.write_bytes(data)

    def compact(self) -> None:
        """Merges all parts into one; whoever reads meanwhile finds every evaluation, some perhaps twice."""
        parts = sorted(pull_evaluations(self.store, self.folder))
        if len(parts) < 2:
            return
        self._write("evaluations", self.read())
        self.store.remove(*(f"{SUBJECT}/{name}" for name in parts))
        for name in parts:
            (self.folder / name).unlink(missing_ok=True)
