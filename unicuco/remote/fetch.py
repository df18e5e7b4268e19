"""What readers of a run at a URI need, fetched into this machine's cache, each piece once.

Their folder is another than the one in which a run trains (``cluster/remote_runs.py``): readers never touch that.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from unicuco.errors import EvaluationLogError, PolicyError
from unicuco.evaluations import EvaluationLog
from unicuco.remote import is_uri, place_name
from unicuco.remote.documents import get_folder, latest
from unicuco.remote.log import SUBJECT, RemoteLog, pull_evaluations
from unicuco.remote.store import Store
from unicuco.storage import atomic_file, cache_dir

DOCUMENTS = {"run": "run.json", "progress": "progress.jsonl", "heldout": "heldout.json"}
"""Subject at the URI -> file in a run folder."""
UNUSED_SECONDS = 3600.0
"""Older versions of a policy stay so long for who may be reading them."""


def policy_folder(place: str | Path) -> Path:
    """A policy or run folder on this machine: ``place`` itself, or the newest policy of the run at that URI.

    What comes back for a URI is one whole version, in a folder that never changes.

    Raises:
        PolicyError: the run there has none yet. RemoteError: the store cannot be read.
    """
    if not is_uri(place):
        return Path(place)
    store = Store(str(place))
    folder = _place(store) / "policy"
    with _alone(folder):
        found = get_folder(store, "policy", lambda document: folder / document.digest, "policy.json")
        if found is None:
            raise PolicyError(f"No policy at {place}.")
        _forget_others(folder, found)
    return found


def run_folder(place: str | Path) -> Path:
    """A run folder on this machine: ``place`` itself, or a copy of the run at that URI as it is now.

    Raises:
        EvaluationLogError: no run there. RemoteError: the store cannot be read.
    """
    if not is_uri(place):
        return Path(place)
    store = Store(str(place))
    folder = _place(store) / "run"
    with _alone(folder):
        if not fetch_documents(store, folder):
            raise EvaluationLogError(f"{place} is not a training run: give the URI that 'unicuco train --run' had.")
        pull_evaluations(store, folder / "evaluations")
        try:
            _link(folder / "policy", policy_folder(place))
        except PolicyError:
            (folder / "policy").unlink(missing_ok=True)
    return folder


def watched_folder(uri: str) -> Path | None:
    """A folder with the documents of the run at ``uri``, and nothing else; None where there is no run.

    Raises:
        RemoteError: the store cannot be read.
    """
    store = Store(uri)
    folder = _place(store) / "documents"
    with _alone(folder):
        return folder if fetch_documents(store, folder) else None


@contextmanager
def writable_log(place: str | Path) -> Iterator[EvaluationLog | None]:
    """The log of the run at a path or a URI, to append to; None where there is a policy alone.

    Raises:
        RemoteError: the store cannot be read.
    """
    if not is_uri(place):
        folder = Path(place) / "evaluations"
        yield EvaluationLog(folder) if folder.is_dir() else None
        return
    store = Store(str(place))
    folder = _place(store) / "log"
    with _alone(folder):
        yield RemoteLog(folder, store) if store.names(SUBJECT) else None


def fetch_documents(store: Store, folder: Path, subjects: tuple[str, ...] = tuple(DOCUMENTS)) -> bool:
    """Writes the newest documents of a run into ``folder``, and removes those that are not at the store.

    Returns:
        whether there is a run.
    """
    found = {subject: latest(store, subject) for subject in ("run", *subjects)}
    if found["run"] is None:
        return False
    for subject, document in found.items():
        path = folder / DOCUMENTS[subject]
        if document is None:
            path.unlink(missing_ok=True)
            continue
        with atomic_file(path) as scratch:
            scratch.write_bytes(document.data)
    return True


def _place(store: Store) -> Path:
    return cache_dir() / "fetched" / place_name(store.uri)


def _alone(folder: Path) -> FileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _link(name: Path, target: Path) -> None:
    """Makes ``name`` a link to ``target``, in one step."""
    scratch = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    os.replace(scratch, name)


def _forget_others(folder: Path, current: Path) -> None:
    os.utime(current)
    for other in folder.iterdir():
        if other != current and other.is_dir() and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
