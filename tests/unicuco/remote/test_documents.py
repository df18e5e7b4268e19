"""Versions of documents and folders: whole or not there, whatever fails when."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.unicuco.remote.faulty import writes_fail
from unicuco.errors import RemoteError
from unicuco.remote.documents import Document, get_folder, latest, put_document, put_folder, remove_document
from unicuco.remote.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"faulty://{tmp_path}/store", pauses=())


def make(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "about.json").write_text(json.dumps({"text": text}))
    (folder / "weights.bin").write_bytes(text.encode() * 1000)
    (folder / "always.bin").write_bytes(b"the same")
    return folder


def fetch(store: Store, tmp_path: Path) -> Path | None:
    return get_folder(store, "policy", lambda document: tmp_path / "got" / document.digest, "about.json")


def texts(folder: Path) -> set[str]:
    whole = (folder / "weights.bin").read_bytes().decode()
    return {json.loads((folder / "about.json").read_text())["text"], whole[: len(whole) // 1000]}


def test_the_newest_whole_version_counts_and_the_one_before_stays(store: Store) -> None:
    assert latest(store, "run") is None
    for number in range(1, 5):
        put_document(store, "run", json.dumps({"n": number}).encode())
    found = latest(store, "run")
    assert found is not None and found.json() == {"n": 4} and found.number == 4
    assert len(store.names("run")) == 2
    remove_document(store, "run")
    assert latest(store, "run") is None


def test_an_upload_that_fails_half_way_leaves_the_version_before(store: Store) -> None:
    put_document(store, "run", b'{"n": 1}')
    for _ in range(3):
        with writes_fail("/run/"), pytest.raises(RemoteError):
            put_document(store, "run", b'{"n": 2, "more": "than before"}')
    assert len(store.names("run")) >= 2, "half of it lies there"
    assert isinstance(found := latest(store, "run"), Document) and found.json() == {"n": 1}
    put_document(store, "run", b'{"n": 3}')
    assert isinstance(found := latest(store, "run"), Document) and found.json() == {"n": 3}


@pytest.mark.parametrize("where", ["/files/", "/policy/0000000"])
def test_a_folder_is_whole_or_the_one_before(store: Store, tmp_path: Path, where: str) -> None:
    assert fetch(store, tmp_path) is None
    put_folder(store, "policy", make(tmp_path / "folder", "first"))
    with writes_fail(where), pytest.raises(RemoteError):
        put_folder(store, "policy", make(tmp_path / "folder", "second, and longer"))
    found = fetch(store, tmp_path)
    assert found is not None and texts(found) == {"first"}
    put_folder(store, "policy", make(tmp_path / "folder", "second, and longer"))
    found = fetch(store, tmp_path)
    assert found is not None and texts(found) == {"second, and longer"}


def test_only_what_is_new_is_sent_and_what_is_old_is_removed(store: Store, tmp_path: Path) -> None:
    for text in ("a", "b", "c", "d"):
        put_folder(store, "policy", make(tmp_path / "folder", text))
    assert len(store.names("policy")) == 2
    assert len(store.names("policy/files")) == 5, "two versions of two files, and the one that they share"
    before = store.names("policy")
    put_folder(store, "policy", tmp_path / "folder")
    assert store.names("policy") == before, "nothing has changed"


def test_readers_never_see_half_a_folder_while_versions_come(store: Store, tmp_path: Path) -> None:
    put_folder(store, "policy", make(tmp_path / "folder", "0"))
    stop = threading.Event()
    seen: list[set[str]] = []
    wrong: list[Exception] = []

    def read() -> None:
        mine = Store(store.uri, pauses=())
        try:
            while not stop.is_set():
                found = fetch(mine, tmp_path)
                assert found is not None
                seen.append(texts(found))
        except Exception as error:
            wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 40):
        put_folder(store, "policy", make(tmp_path / "folder", str(number)))
    stop.set()
    reader.join()
    assert not wrong and len(seen) > 3 and all(len(both) == 1 for both in seen)


def test_a_listing_from_which_all_has_vanished_is_not_the_end_of_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_document(store, "run", b'{"n": 1}')
    names, listed = store.names, [0]

    def late(folder: str) -> dict[str, int]:
        listed[0] += 1
        return {} if listed[0] == 1 else names(folder)

    monkeypatch.setattr(store, "names", late)
    assert isinstance(found := latest(store, "run"), Document) and found.json() == {"n": 1} and listed[0] == 2


@pytest.mark.parametrize("name", ["../out", "/etc/x", ".hidden", "a/b"])
def test_a_list_from_outside_writes_nowhere_else(store: Store, tmp_path: Path, name: str) -> None:
    put_document(store, "policy", json.dumps({"files": {name: {"sha256": "0" * 64, "bytes": 1}}}).encode())
    with pytest.raises(RemoteError, match="is no list of files"):
        fetch(store, tmp_path)
    put_document(store, "policy", json.dumps({"files": {"a": {"sha256": "../../run", "bytes": 1}}}).encode())
    with pytest.raises(RemoteError, match="is no list of files"):
        fetch(store, tmp_path)


def test_a_file_whose_content_was_changed_is_refused(store: Store, tmp_path: Path) -> None:
    put_folder(store, "policy", make(tmp_path / "folder", "first"))
    name, size = max(store.names("policy/files").items(), key=lambda item: item[1])
    store.put(f"policy/files/{name}", b"y" * size)
    with pytest.raises(RemoteError, match="missing or broken"):
        fetch(store, tmp_path)
    assert not list((tmp_path / "got").glob("*/about.json"))
