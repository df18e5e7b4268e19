"""Base models at a URI: plain Hugging Face folders or GGUF files, fetched once per machine."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock

from unicuco.errors import ModelError, RemoteError
from unicuco.remote import place_name
from unicuco.remote.store import Store
from unicuco.storage import atomic_folder, cache_dir, content_hash


def fetch_model(uri: str, wanted: Sequence[str]) -> Path:
    """The folder at ``uri`` as a folder on this machine: the files that match ``wanted``.

    It is fetched again when a file's name or size there has changed. Whether the content is what a run was started
    with is for whoever has its digest to say.

    Raises:
        ModelError: there is no such folder. RemoteError: the store cannot be read.
    """
    store = Store(uri)
    files = {name: size for name, size in store.names("").items() if any(fnmatch(name, one) for one in wanted)}
    if not files:
        raise ModelError(f"No base model at {uri}.")
    return _fetch(store, uri, files)


def fetch_gguf(uri: str) -> Path:
    """The GGUF file at ``uri`` as a file on this machine.

    Raises:
        ModelError: there is none. RemoteError: the store cannot be read.
    """
    folder, _, name = uri.rpartition("/")
    store = Store(folder)
    files = {found: size for found, size in store.names("").items() if found == name}
    if not files:
        raise ModelError(f"No GGUF file at {uri}.")
    return _fetch(store, uri, files) / name


def _fetch(store: Store, uri: str, files: dict[str, int]) -> Path:
    root = cache_dir() / "models"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{place_name(uri)}-{content_hash(files)[:8]}"
    with FileLock(str(target) + ".lock"):
        if not target.is_dir():
            with atomic_folder(target) as scratch:
                for name, size in files.items():
                    store.get(name, scratch / name)
                    if (scratch / name).stat().st_size != size:
                        raise RemoteError(f"{uri}: {name} changed while it was read; try again.")
    return target
