"""Writing to disk so that a crash or a full disk leaves nothing half-written, and naming content by its hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unicuco.errors import DiskFullError


def cache_dir() -> Path:
    """Where converted models and preparations live: ``$UNICUCO_CACHE`` or ``~/.cache/unicuco``."""
    return Path(os.environ.get("UNICUCO_CACHE") or Path.home() / ".cache" / "unicuco").expanduser()


@contextmanager
def clear_disk_errors(target: Path) -> Iterator[None]:
    """Turns "no space left" and "not permitted" into one sentence about ``target``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
            raise DiskFullError(
                f"The disk is full: {target} could not be written, and nothing was left there."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise DiskFullError(f"{target} cannot be written: {os.strerror(error.errno)}.") from error
        raise
    except Exception as error:  # safetensors and pyarrow wrap the system's error in their own types
        if "No space left" in str(error) or "os error 28" in str(error):
            raise DiskFullError(
                f"The disk is full: {target} could not be written, and nothing was left there."
            ) from error
        raise


@contextmanager
def atomic_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """A scratch folder beside ``target`` that takes its place when the block ends well and vanishes when it does not.

    Raises:
        FileExistsError: ``target`` exists at the end and ``replace`` is false.
        DiskFullError: the disk filled up; the scratch folder is gone.
    """
    target = Path(target)
    with clear_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            scratch.chmod(0o777 & ~_umask())
            yield scratch
            with ThreadPoolExecutor(8) as pool:  # files that wait for the disk together share its journal's commits
                list(pool.map(sync, [scratch, *scratch.rglob("*")]))
            if target.exists():
                if not replace:
                    raise FileExistsError(errno.EEXIST, "already exists", str(target))
                old = scratch.with_suffix(".old")
                os.replace(target, old)
                os.replace(scratch, target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(scratch, target)
            sync(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A scratch path beside ``target``; what the block wrote there is flushed and renamed over ``target``."""
    target = Path(target)
    with clear_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(descriptor)
        scratch = Path(name)
        try:
            scratch.chmod(0o666 & ~_umask())
            yield scratch
            sync(scratch)
            os.replace(scratch, target)
            sync(target.parent)
        finally:
            scratch.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    with atomic_file(target) as scratch:
        scratch.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def file_digest(path: Path) -> str:
    """SHA-256 of one file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order: the name of a preparation, a policy, a strategy."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sync(path: Path) -> None:
    """Waits until what was written to ``path``, a file or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems cannot sync a directory; that is not the user's problem
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
