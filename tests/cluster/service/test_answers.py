"""``/v1/answers`` and ``/v1/policies``: what the policy says, many callers at once, new versions, bad input."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from pathlib import Path
from typing import cast

import pytest
from starlette.testclient import TestClient

from cluster.service.app import create_app
from cluster.service.config import ServiceConfig
from cluster.service.gateway import Gateway, JobsProxy, answer_together
from cluster.service.policies import Offered, Policies
from tests.cluster.service.conftest import config_of, serving
from unicuco.policy import Policy
from unicuco.request import Answer, Request


@pytest.fixture
def client(config: ServiceConfig) -> TestClient:
    with serving(config) as client:
        yield client


def test_answers_are_the_policys_own(client: TestClient, tiny_run: Path) -> None:
    requests = [{"kept": 0.7}, {"id": "phone", "preference": [0.3, 0.7]}, {"bytes": 150_000}]
    reply = client.post("/v1/answers", json={"requests": requests}).json()
    own = Policy.load(tiny_run).answer([Request(**r) for r in requests], bytes_per_param=4)
    for one, other in zip(reply["answers"], own, strict=True):
        wanted = json.loads(other.model_dump_json())
        # Strategies that are predicted together differ by rounding from those predicted alone.
        assert one == wanted | {name: pytest.approx(wanted[name]) for name in ("kl", "kl_low", "kl_high")}
    assert reply["policy"] == "tiny" and reply["answers"][1]["id"] == "phone"


def test_calls_that_are_answered_together_get_their_own_answers(config: ServiceConfig) -> None:
    offered = Policies(config.policies).get("tiny")
    calls = [(offered, [Request(kept=0.4 + 0.05 * i), Request(kept=0.9)][: 1 + i % 2]) for i in range(6)]
    found = answer_together(calls)
    assert [[a.levels for a in part] for part in found] == [[a.levels for a in offered.answer(r)] for _, r in calls]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 400, "not_json"),
        ("[]", 422, "invalid"),
        ("{}", 422, "invalid"),
        ('{"requests": []}', 422, "invalid"),
        ('{"requests": [{}]}', 422, "invalid"),
        ('{"requests": [{"kept": 2}]}', 422, "invalid"),
        ('{"requests": [{"kept": NaN}]}', 422, "invalid"),
        ('{"requests": [{"max_kl": Infinity}]}', 422, "invalid"),
        ('{"requests": [{"preference": [NaN, 1]}]}', 422, "invalid"),
        ('{"requests": [{"preference": [1e308, 1e308]}]}', 422, "invalid"),
        ('{"requests": [{"params": 1e400}]}', 422, "invalid"),
        ('{"requests": [{"params": ' + "9" * 400 + "}]}", 422, "invalid"),
        ('{"requests": [{"params": ' + "9" * 5000 + "}]}", 400, "bad_request"),
        ('{"requests": [{"kept": 0.7, "id": "\\ud800"}]}', 422, "invalid"),
        ('{"requests": [{"kept": 0.7, "sql": "drop"}]}', 422, "invalid"),
        ('{"requests": [{"kept": 0.7}], "policy": "../../etc"}', 422, "invalid"),
        ('{"requests": [{"kept": 0.7}], "policy": "none"}', 404, "unknown_policy"),
        ('{"requests": [{"max_kl": {"code": 0.1}}]}', 422, "unknown_objective"),
        ('{"requests": [' + ",".join(['{"kept": 0.7}'] * 300) + "]}", 422, "too_many_requests"),
        ("[" * 100_000, 400, "bad_request"),
    ],
)
def test_bad_calls_get_a_problem_that_says_why(client: TestClient, body: str, status: int, code: str) -> None:
    reply = client.post("/v1/answers", content=body, headers={"content-type": "application/json"})
    said = reply.json()
    assert (reply.status_code, said["code"], said["status"]) == (status, code, status)
    assert reply.headers["content-type"] == "application/problem+json"
    assert said["instance"] == reply.headers["x-request-id"] and "Traceback" not in reply.text


def test_bodies_are_json_and_small(client: TestClient, config: ServiceConfig) -> None:
    assert client.post("/v1/answers", content="kept=0.7").status_code == 415
    big = b" " * (config.limits.body_bytes + 1)
    assert client.post("/v1/answers", content=big, headers={"content-type": "application/json"}).status_code == 413
    parts = (b" " * 1000 for _ in range(config.limits.body_bytes // 1000 + 2))  # no length is given
    assert client.post("/v1/answers", content=parts, headers={"content-type": "application/json"}).status_code == 413


def test_wrong_methods_and_paths_are_told_what_is_there(client: TestClient) -> None:
    some = f"/v1/checkpoints/c-{'0' * 24}"
    for method, path, allowed in (
        ("GET", "/v1/answers", {"POST"}),
        ("PUT", "/v1/checkpoints", {"GET", "POST"}),
        ("POST", some, {"GET", "DELETE"}),
    ):
        refused = client.request(method, path)
        assert refused.status_code == 405 and set(refused.headers["allow"].split(", ")) == allowed
    for path in ("/v1/nothing", "/page/../../etc/passwd", "/..%2f..%2fetc/passwd", "/app.py", f"{some}/files/"):
        refused = client.get(path)
        assert refused.status_code in (404, 405) and refused.headers["content-type"] == "application/problem+json"


def test_a_callers_id_is_taken_where_it_is_one(client: TestClient) -> None:
    assert client.get("/v1/policies", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/v1/policies", headers={"x-request-id": "a b\tc"}).headers["x-request-id"] != "a b\tc"


def test_policies_are_described_and_their_front_falls(client: TestClient) -> None:
    (policy,) = client.get("/v1/policies").json()["policies"]
    assert policy["name"] == "tiny" and policy["blocks"] == 3 and policy["objectives"] == ["size", "mean"]
    front = client.get("/v1/policies/tiny/front").json()
    kept, kl = [p["kept"] for p in front["promised"]], [p["kl"] for p in front["promised"]]
    assert kept == sorted(kept, reverse=True) and kl[0] == 0 and kl[-1] > kl[0]
    assert front["measured"] and client.get("/v1/policies/nobody/front").status_code == 404


def test_a_new_version_is_taken_up_while_calls_go_on(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = config_of(run, tmp_path, watch_seconds=0.05, limits={"calls_per_second": 1e6})  # it asks without a pause
    with serving(config) as client:
        seen: list[tuple[int, str]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                reply = client.post("/v1/answers", json={"requests": [{"kept": 0.7}]})
                seen.append((reply.status_code, reply.json().get("digest", "")))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            time.sleep(0.3)
            about = json.loads((run / "policy" / "policy.json").read_text())
            fresh = Policy.load(run)
            fresh.parts.provenance["note"] = "again"
            fresh.save(run / "policy")
            wanted = json.loads((run / "policy" / "policy.json").read_text())["digest"][:16]
            assert wanted != about["digest"][:16]
            until = time.monotonic() + 20
            while time.monotonic() < until and (not seen or seen[-1][1] != wanted):
                time.sleep(0.05)
            (run / "policy" / "policy.json").write_text("{")  # what cannot be read changes nothing
            time.sleep(0.3)
        finally:
            stop.set()
            asking.join()
        assert {status for status, _ in seen} == {200}
        assert seen[-1][1] == wanted and seen[0][1] != wanted


@pytest.mark.parametrize("prefix", ["", "/behind/a-proxy"])
def test_calls_beyond_the_limit_are_shed_at_once_and_the_others_answered(config: ServiceConfig, prefix: str) -> None:
    config = config.model_copy(update={"limits": config.limits.model_copy(update={"calls_at_once": 2})})
    inside, let_go = threading.Semaphore(0), threading.Event()

    class Slow(Gateway):
        async def answer(self, offered: Offered, requests: list[Request]) -> list[Answer]:
            inside.release()
            await asyncio.to_thread(let_go.wait, 30)
            return await super().answer(offered, requests)

    body, replies = {"requests": [{"kept": 0.7}]}, []
    # No checkpoint is asked for, so nobody owns the table.
    with TestClient(create_app(Slow(config, cast(JobsProxy, None))), root_path=prefix) as client:
        answers = f"{prefix}/v1/answers"
        calls = [threading.Thread(target=lambda: replies.append(client.post(answers, json=body))) for _ in range(2)]
        for call in calls:
            call.start()
        assert all(inside.acquire(timeout=20) for _ in calls)
        refused = client.post(answers, json=body)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["code"] == "overloaded" and refused.headers["x-request-id"] == refused.json()["instance"]
        assert client.get(f"{prefix}/v1/policies").status_code == 200  # only answers are limited
        let_go.set()
        for call in calls:
            call.join()
        assert [reply.status_code for reply in replies] == [200, 200]
        assert client.post(answers, json=body).status_code == 200
