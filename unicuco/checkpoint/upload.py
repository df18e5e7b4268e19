"""A checkpoint at a URI: any filesystem that fsspec or pyarrow knows, whole or recognisably not there.

Most of them rename nothing in one step, so the order of writing says what is whole: a note that an upload is going on
comes first, then weights, then the small files, and ``unicuco.json``, which lists them all, last. Where that is not, no
checkpoint is; with the note beside what is there, an upload that died left it, and the next one goes over it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from unicuco.checkpoint.audit import read_record
from unicuco.checkpoint.card import PROVENANCE
from unicuco.errors import CheckpointError, RemoteError
from unicuco.remote.store import Store

NOTE = "unicuco.uploading"


def check_place(store: Store, replace: bool) -> None:
    """Refuses a place where something lies that is not ours to write over.

    Raises:
        CheckpointError: that. RemoteError: the store cannot be read.
    """
    there = set(store.anything())
    if there and not there & {PROVENANCE, NOTE}:
        raise CheckpointError(f"{store.uri} holds something that is no checkpoint of ours; choose another place.")
    if PROVENANCE in there and NOTE not in there and not replace:
        raise CheckpointError(f"{store.uri} exists already; choose another place, or say --replace.")


def upload(folder: Path, store: Store, replace: bool = False) -> None:
    """Puts the checkpoint in ``folder`` at ``store``.

    Raises:
        CheckpointError: see ``check_place``. RemoteError: it failed; what had been written is removed where that is
            possible, and is no checkpoint in any case.
    """
    check_place(store, replace)
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    weights = sorted(name for name in files if name.endswith(".safetensors"))
    order = [*weights, *sorted(set(files) - {*weights, PROVENANCE})]
    before = set(store.names("")) - {NOTE}
    store.put(NOTE, json.dumps(sorted(files)).encode())
    store.remove(PROVENANCE)
    try:
        for name in order:
            store.put(name, files[name])
        sizes = store.names("")
        short = [name for name in order if sizes.get(name) != files[name].stat().st_size]
        if short:
            raise RemoteError(f"{store.uri}: {', '.join(short)} did not arrive whole.")
        store.remove(*sorted(before - set(files)))  # of the checkpoint that was replaced
        store.put(PROVENANCE, files[PROVENANCE])
    except BaseException:
        with suppress(RemoteError):  # the network is gone: the note says what this is
            store.remove(PROVENANCE, *order, NOTE)
        raise
    store.remove(NOTE)


@contextmanager
def fetched(uri: str) -> Iterator[Path]:
    """The checkpoint at ``uri`` in a folder that is gone after the block.

    Raises:
        CheckpointError: there is none, or it changed meanwhile. RemoteError: the store cannot be read.
    """
    store = Store(uri)
    with TemporaryDirectory(prefix="unicuco-fetched-") as temporary:
        folder = Path(temporary)
        names = store.names("")
        if PROVENANCE not in names or NOTE in names:
            raise CheckpointError(f"{uri} is no checkpoint of UniCuCo, or not a whole one.")
        try:
            for name in (PROVENANCE, *names):
                store.get(name, folder / name)
        except FileNotFoundError as error:
            raise CheckpointError(f"{uri} changed while it was read; try again.") from error
        read_record(folder)
        yield folder
