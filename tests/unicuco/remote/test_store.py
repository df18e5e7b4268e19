"""A folder at a URI: the same on every filesystem, one sentence for what goes wrong."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper

from tests.unicuco.remote.faulty import FaultyFileSystem, writes_fail
from unicuco.errors import RemoteError
from unicuco.remote import is_uri, place_name
from unicuco.remote import store as module
from unicuco.remote.store import Store


@pytest.fixture(params=["file", "memory", "faulty", "arrow"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/runs/first")
    if request.param == "arrow":
        wrapped = ArrowFSWrapper(pyarrow.fs.LocalFileSystem())
        monkeypatch.setattr(module, "_open", lambda uri: (wrapped, uri.removeprefix("file://")))
        return Store(f"file://{tmp_path}/runs/first")
    return Store(f"{request.param}://{tmp_path}/runs/first")


def test_what_is_put_is_there(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.names("a") == {} and store.anything() == []
    store.put("a/one.bin", b"12345")
    store.put("a/one.bin", b"123")
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    store.put("a/two.bin", file)
    monkeypatch.setattr(module, "AT_ONCE", 10)
    store.put("a/deep/three.bin", file)  # as a stream
    assert store.names("a") == {"one.bin": 3, "two.bin": 100_000} and store.anything() == ["a"]
    assert store.read("a/one.bin") == b"123"
    assert store.get("a/deep/three.bin", tmp_path / "back") == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    store.remove("a/one.bin", "a/never.bin")
    assert store.names("a") == {"two.bin": 100_000}
    with pytest.raises(FileNotFoundError):
        store.read("a/one.bin")


def test_trying_again_helps_where_a_network_hiccups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"faulty://{tmp_path}/run", pauses=(0.0, 0.0))
    tries = []
    real = FaultyFileSystem.pipe_file

    def hiccup(self: FaultyFileSystem, path: str, value: bytes, **kwargs: object) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise TimeoutError
        real(self, path, value)

    monkeypatch.setattr(FaultyFileSystem, "pipe_file", hiccup)
    (tmp_path / "run").mkdir()
    store.put("a", b"whole")
    assert store.read("a") == b"whole" and len(tries) == 3


def test_what_goes_wrong_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"^nosuch://bucket/run cannot be opened: ValueError: Protocol not known"):
        Store("nosuch://bucket/run")
    store = Store(f"faulty://{tmp_path}/run", pauses=())
    with (
        writes_fail("run"),
        pytest.raises(RemoteError, match=r"could not write a/b \(ConnectionError: the network is gone\)"),
    ):
        store.put("a/b", b"12")
    with pytest.raises(RemoteError, match="could not write"):
        Store("https://127.0.0.1:9/run", pauses=()).put("a", b"")


def test_a_relative_folder_means_the_same_to_processes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("file://runs/first").uri == f"file://{tmp_path}/runs/first"


def test_places_are_told_apart() -> None:
    assert is_uri("s3://bucket/run") and not is_uri("runs/first") and not is_uri(Path("/a/b"))
    assert place_name("s3://a/first").startswith("first-")
    assert place_name("s3://a/first") == place_name("s3://a/first/") != place_name("s3://b/first")
