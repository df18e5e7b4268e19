"""API keys are shown once and kept as hashes; without one nothing is told; each key has its share of calls."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cluster.service.config import ServiceError, make_config, refuse_open
from cluster.service.keys import ANYBODY, KeyFile, Keys, RateLimit
from cluster.service.problems import ProblemError
from tests.cluster.service.conftest import config_of, serving


def test_a_key_opens_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, other = file.add("laptop"), file.add("phone")
    keys = Keys(file.path)
    assert (keys.owner(f"Bearer {key}"), keys.owner(f"bearer {other}")) == ("laptop", "phone")
    assert key not in file.path.read_text() and file.path.stat().st_mode & 0o077 == 0
    for wrong in (None, "", "Bearer", f"Bearer {key}x", f"Basic {key}", f"Bearer {json.loads(file.path.read_text())}"):
        with pytest.raises(ProblemError) as refused:
            keys.owner(wrong)
        assert refused.value.status == 401 and key not in str(refused.value)


def test_removed_keys_stop_working_without_a_restart(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, kept = file.add("laptop"), file.add("phone")
    keys = Keys(file.path)
    file.remove("laptop")
    os.utime(file.path, (time.time() + 5, time.time() + 5))
    time.sleep(1.1)
    with pytest.raises(ProblemError):
        keys.owner(f"Bearer {key}")
    assert keys.owner(f"Bearer {kept}") == "phone"


def test_names_are_checked_and_not_given_twice(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.add("laptop")
    for name in ("laptop", "../up", "", "Laptop", "a" * 65):
        with pytest.raises(ServiceError):
            file.add(name)
    with pytest.raises(ServiceError, match="there are laptop"):
        file.remove("phone")
    broken = tmp_path / "broken.json"
    broken.write_text("[]")
    with pytest.raises(ServiceError, match="no file of API keys"):
        Keys(broken)


def test_without_a_file_everybody_is_let_in_and_only_from_this_machine(tmp_path: Path) -> None:
    assert Keys(None).owner(None) == ANYBODY
    refuse_open("127.0.0.1", None)
    refuse_open("0.0.0.0", tmp_path)
    with pytest.raises(ServiceError, match="without API keys"):
        refuse_open("0.0.0.0", None)


def test_a_bucket_lets_a_burst_through_and_refills() -> None:
    limit = RateLimit(2)
    for _ in range(4):
        limit.spend("a", now=0.0)
    with pytest.raises(ProblemError) as refused:
        limit.spend("a", now=0.1)
    assert refused.value.status == 429 and 0 < (refused.value.retry_after or 0) <= 0.5
    limit.spend("b", now=0.1)  # another's calls are another's
    limit.spend("a", now=0.6)


def test_every_route_wants_the_key_but_health(tiny_run: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("laptop")
    config = config_of(tiny_run, tmp_path, keys=file.path, limits={"calls_per_second": 3})
    some = "c-" + "0" * 24
    with serving(config) as client:
        schema = client.get("/v1/openapi.json").json()
        closed = [(m, path) for path, methods in schema["paths"].items() for m in methods]
        assert len(closed) >= 8
        for method, path in closed:
            path = path.replace("{name}", "tiny").replace("{checkpoint_id}", some)
            body = {"json": {"requests": [{"kept": 0.7}]}} if method == "post" else {}
            refused = client.request(method, path, **body)
            assert refused.status_code == 401, (method, path)
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/health/ready").status_code == 200
        mine = {"authorization": f"Bearer {key}"}
        codes = [client.get("/v1/policies", headers=mine) for _ in range(12)]
        assert codes[0].status_code == 200
        (limited, *_) = [reply for reply in codes if reply.status_code == 429]
        assert int(limited.headers["retry-after"]) >= 1


def test_calls_leave_a_line_without_secrets(tiny_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("laptop")
    with serving(config_of(tiny_run, tmp_path, keys=file.path)) as client, caplog.at_level("INFO", "unicuco"):
        headers = {"authorization": f"Bearer {key}", "x-request-id": "call-1"}
        client.post("/v1/answers", json={"requests": [{"kept": 0.7, "id": "my secret plan"}]}, headers=headers)
        client.get("/v1/policies", headers={"authorization": "Bearer ucc_wrong"})
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "unicuco.access"]
    assert lines[0] | {"ms": 0} == {
        "call": "call-1", "key": "laptop", "method": "POST", "route": "/v1/answers", "status": 200, "ms": 0,
    }  # fmt: skip
    assert lines[1]["status"] == 401 and lines[1]["key"] == ""
    assert key not in caplog.text and "ucc_wrong" not in caplog.text and "secret plan" not in caplog.text


def test_a_service_of_nothing_or_of_the_wrong_thing_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    policy = {"tiny": {"path": tiny_run}}
    for wrong, said in (
        ({"policies": {}}, "policies"),
        ({"policies": {"a": {"path": tmp_path}}}, "no policy at"),
        ({"policies": {"../a": {"path": tiny_run}}}, "policies"),
        ({"policies": policy, "database": "mysql://x"}, "sqlite"),
        ({"policies": policy, "database": "postgresql+nodriver://x"}, "database"),
        ({"policies": policy, "database": "postgresql+pg8000://me:secret@x/y"}, "pip install"),
        ({"policies": {"tiny": {"path": tiny_run, "device": "cuda"}}}, "num_gpus"),
        ({"policies": {"tiny": {"path": tiny_run, "device": "cuda", "num_gpus": 1.5}}}, "several whole ones"),
        ({"policies": policy, "gateways": [3, 2]}, "gateways"),
    ):
        with pytest.raises(ServiceError, match=said):
            make_config(wrong)
