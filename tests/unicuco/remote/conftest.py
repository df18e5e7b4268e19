"""A cache of its own for every test, and stores that do not wait between tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from unicuco.remote import store


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNICUCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store.Store.__init__, "__defaults__", ((0.0, 0.0),))
