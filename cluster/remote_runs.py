"""A run at a URI: a working folder in this machine's cache, for speed, and the store, which is the place of truth.

Whatever counts is at the store first: ``run.json``, every evaluation, every version of the policy, ``heldout.json``.
The working folder may be lost at any time; who goes on with the run, here or on another machine, fetches what is there.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.lease import SUBJECT, Lease
from cluster.runs import ProgressLog, ProgressRecord, RunError, RunFolder, check_about
from unicuco.evaluations import EvaluationLog
from unicuco.preparation import Preparation
from unicuco.remote import is_uri, place_name
from unicuco.remote.documents import latest, put_document, short_digest
from unicuco.remote.fetch import fetch_documents
from unicuco.remote.log import RemoteLog, pull_evaluations
from unicuco.remote.nodes import put_preparation
from unicuco.remote.store import Store
from unicuco.storage import cache_dir


def open_run(place: str | Path) -> RunFolder:
    """The run at a path or a URI, whether there is one yet or not.

    Raises:
        RemoteError: no filesystem here knows the URI. RunError: it is one that other processes cannot see.
    """
    if not is_uri(place):
        return RunFolder(Path(place).expanduser().absolute())
    if str(place).startswith("memory:"):
        raise RunError(f"{place} exists in one process only, and a run has several; choose another URI.")
    store = Store(str(place))
    return RemoteRun(cache_dir() / "runs" / place_name(store.uri), store, Lease(store))


@dataclass(frozen=True)
class RemoteRun(RunFolder):
    """A run at ``store``; ``path`` is its working folder on this machine."""

    store: Store = field(compare=False)
    lease: Lease = field(compare=False)

    @property
    def where(self) -> str:
        return self.store.uri

    @property
    def uri(self) -> str | None:
        return self.store.uri

    def refuse_existing(self) -> None:
        if latest(self.store, "run") is not None:
            raise RunError(
                f"{self.where} already holds a run: go on with it by 'unicuco train --resume {self.where}', or choose "
                "another URI."
            )
        if set(self.store.anything()) - {SUBJECT}:
            raise RunError(f"{self.where} exists and holds something else than a run; choose another URI.")

    def read(self) -> dict[str, Any]:
        found = latest(self.store, "run")
        if found is None:
            raise RunError(f"{self.where} holds no run (no run.json).")
        return check_about(found.data, self.where)

    def save(self, file: Path, value: Any) -> None:
        put_document(self.store, file.stem, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
        super().save(file, value)

    def log(self) -> EvaluationLog:
        return RemoteLog(self.evaluations, self.store)

    def progress_log(self) -> ProgressLog:
        return _LeasedProgress(self.progress, self.lease)

    def share(self, preparation: Preparation) -> None:
        put_preparation(self.store.uri, preparation)

    @contextmanager
    def locked(self, tell: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Holds the run for this process, and makes the working folder what is at the store.

        Raises:
            RunError, LeaseError: another process is training in it. RemoteError: the store cannot be used.
        """
        with super().locked():
            place = self.path / ".place"
            if not place.is_file():
                place.write_text(uuid.uuid4().hex, encoding="ascii")
            try:
                self.lease.claim(place.read_text(encoding="ascii"), tell, _Publisher(self))
                try:
                    self._fetch()
                    yield
                finally:
                    self.lease.release()
            finally:
                if not self.about.is_file():
                    shutil.rmtree(self.evaluations, ignore_errors=True)
                    place.unlink(missing_ok=True)

    def _fetch(self) -> None:
        if not fetch_documents(self.store, self.path):  # a new run: what lies here is of one that was removed
            for old in (self.about, self.progress, self.heldout):
                old.unlink(missing_ok=True)
            shutil.rmtree(self.policy, ignore_errors=True)
        pull_evaluations(self.store, self.evaluations)


class _Publisher:
    """Puts ``progress.jsonl`` at the store where it has changed."""

    def __init__(self, run: RemoteRun) -> None:
        self._run, self._last = run, ""

    def __call__(self) -> None:
        try:
            data = self._run.progress.read_bytes()
        except FileNotFoundError:
            return
        data = data[: data.rfind(b"\n") + 1]
        if data and (digest := short_digest(data)) != self._last:
            put_document(self._run.store, "progress", data, ".jsonl")
            self._last = digest


class _LeasedProgress(ProgressLog):
    """Ends the run of a process that has been replaced."""

    def __init__(self, path: Path, lease: Lease) -> None:
        super().__init__(path)
        self._lease = lease

    def append(self, record: ProgressRecord) -> None:
        self._lease.check()
        super().append(record)
