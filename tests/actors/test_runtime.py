from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.runtime import RayConfig, RayStartError, local_authentication, start_or_attach, token_file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNICUCO_CACHE", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_token_is_private_and_stays(cache: Path) -> None:
    old = os.umask(0)
    try:
        path = token_file()
    finally:
        os.umask(old)
    assert path == cache / "ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    token = path.read_text()
    assert len(token) == 64
    path.chmod(0o644)
    assert token_file().read_text() == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["auth_token"]


def test_a_local_ray_asks_for_a_token_unless_the_user_chose(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_authentication() == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cache / "ray" / "auth_token"),
    }
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert local_authentication() == {"RAY_AUTH_MODE": "token"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert local_authentication() == {}


def test_a_ray_that_runs_already_is_used_and_left_running(ray_session: None) -> None:
    import ray

    before = dict(os.environ)
    with start_or_attach(RayConfig(num_cpus=7)) as runtime:
        assert not runtime.started_here
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()
    assert dict(os.environ) == before


def test_what_the_user_set_stays(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with start_or_attach():
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_addresses_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RayStartError, match="ray job submit"), start_or_attach():
        pass


def test_an_address_where_nobody_answers_fails_at_once(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code = f"from actors.runtime import *\nwith start_or_attach(RayConfig(address={address!r})): pass"
        began = time.monotonic()
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"RayStartError: Nobody answers at {address}" in run.stderr
    assert time.monotonic() - began < 30
