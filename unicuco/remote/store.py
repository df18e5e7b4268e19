"""A folder on any filesystem that fsspec or pyarrow knows: the five things that are done to it, and their errors."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from unicuco.errors import RemoteError
from unicuco.storage import atomic_file

T = TypeVar("T")
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try; networks hiccup, and the clients' own retries do not know all of it."""
AT_ONCE = 32 << 20
"""Files up to this many bytes are sent in one call, which object stores make visible whole or not at all."""
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "tos"}
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError, ImportError)
"""What trying again does not change."""


class Store:
    """What lies under one URI. Keys are relative, with ``/``. Thread-safe as far as the filesystem is.

    Whatever goes wrong is a ``RemoteError``, except that a key that is not there is a ``FileNotFoundError``.
    """

    def __init__(self, uri: str, pauses: tuple[float, ...] = PAUSES) -> None:
        """Raises RemoteError where no filesystem here knows the URI."""
        self.uri = uri.rstrip("/")
        self._pauses = pauses
        self._fs, root = _open(self.uri)
        self._root = root.rstrip("/")
        if self._is_local:  # processes elsewhere have another working directory
            self.uri = f"file://{self._root}"

    def names(self, folder: str) -> dict[str, int]:
        """Names and bytes of the files directly in ``folder``; {} where there is no such folder."""
        return {name: size for name, size, is_file in self._entries(folder) if is_file}

    def anything(self) -> list[str]:
        """Names of all that lies directly under the URI, folders too."""
        return sorted(name for name, _, _ in self._entries(""))

    def read(self, key: str) -> bytes:
        """A whole file."""
        return bytes(self._try(f"read {key}", lambda: self._fs.cat_file(self._path(key))))

    def get(self, key: str, target: Path) -> str:
        """Fetches a file to ``target`` and returns its SHA-256 in hex; a failed try leaves part of it there."""

        def fetch() -> str:
            digest = hashlib.sha256()
            with self._fs.open(self._path(key), "rb") as source, open(target, "wb") as file:
                while chunk := source.read(8 << 20):
                    digest.update(chunk)
                    file.write(chunk)
            return digest.hexdigest()

        return self._try(f"read {key}", fetch)

    def put(self, key: str, source: Path | bytes) -> None:
        """Writes a file. Where it fails, part of it may lie there, unless the filesystem knows better."""
        path = self._path(key)

        def send() -> None:
            try:
                self._send(path, source)
            except FileNotFoundError:
                if self._has_buckets:
                    raise
                self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
                self._send(path, source)

        try:
            self._try(f"write {key}", send)
        except FileNotFoundError as error:
            raise RemoteError(f"{self.uri}: could not write {key} ({_first_line(error)}).") from error

    def remove(self, *keys: str) -> None:
        """Removes files; those that are gone already are no error."""
        for key in keys:
            try:
                self._try(f"remove {key}", lambda key=key: self._fs.rm_file(self._path(key)))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def _send(self, path: str, source: Path | bytes) -> None:
        if self._is_local:  # as durable as every other file of ours
            with atomic_file(Path(path)) as scratch:
                scratch.write_bytes(source) if isinstance(source, bytes) else shutil.copyfile(source, scratch)
        elif isinstance(source, bytes) or source.stat().st_size <= AT_ONCE:
            self._fs.pipe_file(path, source if isinstance(source, bytes) else source.read_bytes())
        else:
            with open(source, "rb") as file, self._fs.open(path, "wb") as target:
                shutil.copyfileobj(file, target, 8 << 20)

    @property
    def _has_buckets(self) -> bool:
        """Whether folders need not be made, and making them could make a bucket out of a misspelt name."""
        protocol = self._fs.protocol
        return bool(OBJECT_STORES & set([protocol] if isinstance(protocol, str) else protocol))

    @property
    def _is_local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return type(self._fs) is LocalFileSystem

    def _entries(self, folder: str) -> list[tuple[str, int, bool]]:
        path = self._path(folder).rstrip("/")

        def look() -> list[dict[str, Any]]:
            self._fs.invalidate_cache()  # some clients remember listings
            return list(self._fs.ls(path, detail=True))

        try:
            found = self._try(f"list {folder or 'it'}", look)
        except FileNotFoundError:
            return []
        entries = []
        for entry in found:
            whole = str(entry["name"]).rstrip("/")
            name = whole.rsplit("/", 1)[-1]
            # Some stores keep an empty object in the folder's own name; writers' scratch begins with a dot.
            if whole.strip("/") != path.strip("/") and not name.startswith("."):
                entries.append((name, int(entry["size"] or 0), entry["type"] == "file"))
        return entries

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _try(self, what: str, work: Callable[[], T]) -> T:
        for pause in (*self._pauses, None):
            try:
                return work()
            except FileNotFoundError:
                raise
            except Exception as error:  # every client has exceptions of its own
                if pause is None or isinstance(error, _FINAL):
                    raise RemoteError(f"{self.uri}: could not {what} ({_first_line(error)}).") from error
                time.sleep(pause)
        raise AssertionError("unreachable")


def _open(uri: str) -> tuple[Any, str]:
    """The filesystem of ``uri`` and the path in it: fsspec's own, or where that lacks a package, pyarrow's."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri)
        return fs, str(path)
    except (ImportError, ValueError) as error:
        missing = error
    except Exception as error:
        raise RemoteError(f"{uri} cannot be opened: {_first_line(error)}.") from error
    try:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem

        found, path = FileSystem.from_uri(uri)
    except Exception as error:
        raise RemoteError(f"{uri} cannot be opened: {_first_line(missing)}.") from error
    return ArrowFSWrapper(found), str(path)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
