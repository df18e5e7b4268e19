"""Writes that a crash or a full disk cannot leave half done."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicuco.errors import DiskFullError
from unicuco.storage import atomic_file, atomic_folder, content_hash, file_digest, write_json

FULL = OSError(errno.ENOSPC, "No space left on device")
# What safetensors and pyarrow raise for the same thing.
WRAPPED = RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with atomic_folder(target) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "a").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "1"
    assert list(target.parent.iterdir()) == [target]


def test_a_reader_of_the_old_file_keeps_it(tmp_path: Path) -> None:
    """The new file takes the old one's name; nobody ever sees a mixture."""
    write_json(tmp_path / "a.json", "old")
    with open(tmp_path / "a.json") as reader:
        write_json(tmp_path / "a.json", "new")
        assert json.load(reader) == "old"
    assert json.loads((tmp_path / "a.json").read_text()) == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    for text in ("old", "new"):
        try:
            with atomic_folder(folder, replace=True) as scratch:
                (scratch / "a").write_text(text)
                if text == "new":
                    raise error
        except type(error):
            pass
        try:
            with atomic_file(file) as path:
                path.write_text(text)
                if text == "new":
                    raise error
        except type(error):
            pass
    assert (folder / "a").read_text() == "old" and file.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_everything_in_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    synced: dict[int, bool] = {}
    really = os.fsync

    def fsync(descriptor: int) -> None:
        really(descriptor)
        synced[os.fstat(descriptor).st_ino] = (tmp_path / "target").exists()

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_folder(tmp_path / "target") as scratch:
        (scratch / "sub").mkdir()
        for name in ("a", "b", "sub/c"):
            (scratch / name).write_text(name)
    inside = {path.stat().st_ino for path in (tmp_path / "target", *(tmp_path / "target").rglob("*"))}
    assert len(inside) == 5 and {number for number, late in synced.items() if not late} == inside
    assert synced[tmp_path.stat().st_ino]  # the name itself, afterwards


def test_a_disk_that_fails_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def fsync(descriptor: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError, match="disk is full"), atomic_folder(tmp_path / "target") as scratch:
        (scratch / "a").write_text("a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [FULL, WRAPPED], ids=["system", "wrapped"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(DiskFullError, match="disk is full"), atomic_folder(tmp_path / "folder") as scratch:
        (scratch / "half").write_text("half")
        raise error
    with pytest.raises(DiskFullError, match="disk is full"), atomic_file(tmp_path / "file") as scratch:
        scratch.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DiskFullError, match="cannot be written"):
        write_json(tmp_path / "file" / "below" / "a.json", {})


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for replace in (False, True):
        with atomic_folder(target, replace=replace) as scratch:
            (scratch / f"{replace}").write_text("")
    assert [path.name for path in target.iterdir()] == ["True"]
    with pytest.raises(FileExistsError), atomic_folder(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    """Scratch files are private by default; what takes their place is as readable as anything else."""
    write_json(tmp_path / "a.json", {})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_hash_depends_on_content_not_on_key_order(value: dict) -> None:
    assert content_hash(value) == content_hash(dict(reversed(value.items())))
    assert content_hash(value) == content_hash(json.loads(json.dumps(value)))
    assert content_hash(value) != content_hash(value | {"one key more": 0}) or "one key more" in value


def test_a_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
