"""A checkpoint at a URI is whole or no checkpoint, whatever fails when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unicuco.checkpoint_models import tiny_model, write
from tests.unicuco.remote.faulty import writes_fail
from unicuco.checkpoint.audit import changed_files, read_record
from unicuco.checkpoint.upload import NOTE, check_place, fetched, upload
from unicuco.errors import CheckpointError, RemoteError
from unicuco.models.source import find_model
from unicuco.remote.store import Store
from unicuco.space import Shape

SMALL, LARGE = Shape((1,) * 4, (32,) * 4), Shape((2,) * 4, (64,) * 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tiny_model("llama"), SMALL, tmp_path / "checkpoint", "padded", max_shard_size="200KB")


@pytest.mark.parametrize("scheme", ["file", "memory", "faulty"])
def test_what_arrives_is_what_was_written(scheme: str, folder: Path, tmp_path: Path) -> None:
    uri = f"{scheme}://{tmp_path}/deep/store"
    upload(folder, Store(uri))
    assert NOTE not in Store(uri).anything()
    with fetched(uri) as found:
        assert {p.name: p.read_bytes() for p in found.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
        assert not changed_files(found, read_record(found)["files"])
    assert not found.exists()
    assert (find_model(uri).folder / "model.safetensors.index.json").is_file()  # as any base model


@pytest.mark.parametrize("name", ["model-00002", "config.json", "unicuco.json", NOTE])
def test_an_upload_that_fails_leaves_no_checkpoint_and_may_be_repeated(name: str, folder: Path, tmp_path: Path) -> None:
    store = Store(f"faulty://{tmp_path}/store", pauses=())
    with writes_fail(name), pytest.raises(RemoteError, match="the network is gone"):
        upload(folder, store)
    assert "unicuco.json" not in store.anything()
    with pytest.raises(CheckpointError, match="no checkpoint of UniCuCo"), fetched(store.uri):
        pass
    upload(folder, store)
    with fetched(store.uri) as found:
        assert not changed_files(found, read_record(found)["files"])


def test_what_a_dead_process_left_is_no_checkpoint_and_is_written_over(folder: Path, tmp_path: Path) -> None:
    """As far as weights and a few files, and all but the end of the last."""
    store = Store(f"faulty://{tmp_path}/store")
    for name in (NOTE, "model-00001-of-00003.safetensors", "config.json", "unicuco.json"):
        store.put(name, b"{}")
    with pytest.raises(CheckpointError, match="not a whole one"), fetched(store.uri):
        pass
    upload(folder, store)
    with fetched(store.uri) as found:
        assert not changed_files(found, read_record(found)["files"])


def test_what_is_there_is_replaced_only_when_told_and_only_ours(folder: Path, tmp_path: Path) -> None:
    store = Store(f"faulty://{tmp_path}/store")
    upload(folder, store)
    other = write(tiny_model("llama"), LARGE, tmp_path / "other", "hetero")  # in one file, with code
    with pytest.raises(CheckpointError, match="exists already"):
        upload(other, store)
    upload(other, store, replace=True)
    assert store.anything() == sorted(path.name for path in other.iterdir())
    assert json.loads(store.read("unicuco.json"))["shape"]["groups"] == [2] * 4
    theirs = Store(f"faulty://{tmp_path}/theirs")
    theirs.put("thesis.tex", b"years of work")
    with pytest.raises(CheckpointError, match="no checkpoint of ours"):
        check_place(theirs, replace=True)
