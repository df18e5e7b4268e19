"""Documents and folders in a store, in versions that are whole or not there at all (see the package)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from unicuco.errors import RemoteError
from unicuco.remote.store import Store
from unicuco.storage import atomic_folder, file_digest

T = TypeVar("T")
LOOKS = 5
"""How often to look again when what was listed has been replaced before it was read."""
EMPTY_LOOKS = 3
"""How often to look before there is nothing: while versions are replaced, a listing of a disk names files that are gone
by the time it asks their sizes, and leaves them out; those that came meanwhile are not in it either."""
_VERSION = re.compile(r"^(\d{8})-([0-9a-f]{16})(\.\w+)?$")
_FILE_NAME = re.compile(r"^[\w-][\w.-]{0,119}$")


@dataclass(frozen=True)
class Document:
    """One whole version of a document; ``digest``: the first 16 hex digits of its SHA-256."""

    name: str
    number: int
    digest: str
    data: bytes

    def json(self) -> Any:
        return json.loads(self.data)


def short_digest(data: bytes) -> str:
    """The digest that stands in names."""
    return hashlib.sha256(data).hexdigest()[:16]


def latest(store: Store, subject: str) -> Document | None:
    """The newest whole version of a document; None where there is none.

    Raises:
        RemoteError: the store cannot be read.
    """

    def look() -> Document | None:
        for number, digest, name in _versions(store, subject):
            data = store.read(f"{subject}/{name}")
            if short_digest(data) == digest:
                return Document(name, number, digest, data)
        return None

    for _ in range(EMPTY_LOOKS):
        if (found := _again(look, store, subject)) is not None:
            return found
    return None


def latest_name(store: Store, subject: str) -> str | None:
    """The name of the newest version, whole or not: whether it has changed costs no more than a listing."""
    return next((name for _, _, name in _versions(store, subject)), None)


def put_document(store: Store, subject: str, data: bytes, suffix: str = ".json") -> Document:
    """Writes a version on top, and removes all but it and the one before.

    Raises:
        RemoteError: the version before still counts.
    """
    older = _versions(store, subject)
    number, digest = 1 + max((n for n, _, _ in older), default=0), short_digest(data)
    name = f"{number:08d}-{digest}{suffix}"
    store.put(f"{subject}/{name}", data)
    store.remove(*(f"{subject}/{old}" for _, _, old in older[1:]))
    return Document(name, number, digest, data)


def remove_document(store: Store, subject: str) -> None:
    """Removes every version."""
    store.remove(*(f"{subject}/{name}" for _, _, name in _versions(store, subject)))


def put_folder(store: Store, subject: str, folder: Path) -> Document:
    """Writes the files directly in ``folder`` as a version: first what is new of them, at last their list.

    Raises:
        RemoteError: the version before still counts, whole.
    """
    before = latest(store, subject)
    files = {
        path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in sorted(Path(folder).iterdir())
        if path.is_file() and _FILE_NAME.match(path.name)
    }
    there = store.names(f"{subject}/files")
    for name, about in files.items():
        if there.get(str(about["sha256"])) != about["bytes"]:
            store.put(f"{subject}/files/{about['sha256']}", Path(folder) / name)
    data = json.dumps({"files": files}, indent=2, sort_keys=True).encode()
    if before is not None and before.data == data:
        return before
    document = put_document(store, subject, data)
    needed = {str(about["sha256"]) for about in files.values()}
    if before is not None:  # a reader may have just seen it
        needed |= {str(about["sha256"]) for about in _files(store, subject, before).values()}
    store.remove(*(f"{subject}/files/{name}" for name in there if name not in needed))
    return document


def get_folder(store: Store, subject: str, place: Callable[[Document], Path], holds: str) -> Path | None:
    """Fetches the newest whole version of a folder to where ``place`` says, unless it is there; None: there is none.

    Every file is checked by its digest, and the folder appears in one step. Who may fetch to one place at the same
    time holds a lock around this.

    Args:
        holds: a file that the folder has, by which it is known to be there.

    Raises:
        RemoteError: the store cannot be read, or holds something else.
    """

    def look() -> Path | None:
        document = latest(store, subject)
        if document is None:
            return None
        target = place(document)
        if not (target / holds).is_file():
            files = _files(store, subject, document)
            with atomic_folder(target, replace=True) as scratch:
                for name, about in files.items():
                    if store.get(f"{subject}/files/{about['sha256']}", scratch / name) != about["sha256"]:
                        raise FileNotFoundError(name)  # being written again, or broken: look again
        return target

    return _again(look, store, subject)


def _files(store: Store, subject: str, document: Document) -> dict[str, dict[str, Any]]:
    """What a folder's document lists; names from outside go nowhere but into the folder."""
    try:
        files = dict(document.json()["files"])
        if all(_FILE_NAME.match(n) and re.fullmatch("[0-9a-f]{64}", about["sha256"]) for n, about in files.items()):
            return files
    except (ValueError, KeyError, TypeError):
        pass
    raise RemoteError(f"{store.uri}: {subject}/{document.name} is no list of files.")


def _versions(store: Store, subject: str) -> list[tuple[int, str, str]]:
    """Number, digest and name of every version, newest first."""
    matches = [_VERSION.match(name) for name in store.names(subject)]
    return sorted(((int(m[1]), m[2], m[0]) for m in matches if m), reverse=True)


def _again(look: Callable[[], T], store: Store, subject: str) -> T:
    """What ``look`` finds, tried again where a file vanished under it: a newer version has taken its place."""
    for _ in range(LOOKS):
        try:
            return look()
        except FileNotFoundError as error:
            vanished = error
    raise RemoteError(f"{store.uri}: a file of '{subject}' is missing or broken ({vanished}).")
