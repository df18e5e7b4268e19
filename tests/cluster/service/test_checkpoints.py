"""``/v1/checkpoints`` on real builds of a tiny model: entered, watched, fetched, cancelled, lost and found again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cluster.service.config import ServiceConfig
from cluster.service.jobs import Step
from cluster.service.table import Build
from tests.cluster.service.conftest import config_of, serving, threaded
from unicuco.errors import CheckpointError
from unicuco.evaluations import EvaluationLog
from unicuco.wire import CheckpointResult


def wait_for(client: TestClient, name: str, *states: str, seconds: float = 120) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = client.get(f"/v1/checkpoints/{name}").json()
        if found["state"] in (states or ("done", "failed", "cancelled")):
            return dict(found)
        time.sleep(0.05)
    raise AssertionError(f"still {found['state']} ({found['stage']})")


def order(client: TestClient, kept: float = 0.7, **headers: str) -> dict[str, Any]:
    reply = client.post("/v1/checkpoints", json={"request": {"kept": kept}}, headers=headers)
    assert reply.status_code == 202, reply.text
    assert reply.headers["location"] == f"/v1/checkpoints/{reply.json()['id']}"
    return dict(reply.json())


def slow(stages: int = 1000, pause: float = 0.02) -> Any:
    """A builder that takes its time and never builds: what stops it is what is tested."""
    started: list[str] = []
    closed: list[str] = []

    async def build(order: Build) -> AsyncIterator[Step]:
        started.append(order.build)
        try:
            for i in range(stages):
                await asyncio.sleep(pause)
                yield f"stage {i}"
            yield CheckpointResult(
                uri="file:///nowhere", files=[], bytes=0, params=0, measured={}, verified=False, seconds=0
            )
        finally:
            closed.append(order.build)

    build.started, build.closed = started, closed  # type: ignore[attr-defined]
    return build


def test_an_answer_becomes_a_checkpoint_that_is_fetched(config: ServiceConfig, tiny_run: Path) -> None:
    with serving(config) as client:
        entered = order(client)
        with client.stream("GET", f"/v1/checkpoints/{entered['id']}/events") as stream:
            told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        assert (told[0]["state"], told[-1]["state"]) == ("queued", "done")
        assert "writing and reloading" in [event["stage"] for event in told]
        with client.stream(
            "GET", f"/v1/checkpoints/{entered['id']}/events", headers={"last-event-id": str(told[-2]["seq"])}
        ) as stream:
            again = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        assert again == told[-1:]
        began = time.monotonic()
        for seen in (told[-1]["seq"], 10**6):  # nothing more will come, so nobody waits for it
            late = client.get(f"/v1/checkpoints/{entered['id']}/events", headers={"last-event-id": str(seen)})
            assert (late.status_code, late.text) == (200, "")
        assert time.monotonic() - began < 10

        result = wait_for(client, entered["id"])["result"]
        assert result["verified"] and result["params"] == entered["answer"]["params"]
        assert result["measured"]["kl_heldout"] > 0
        names = {file["name"] for file in result["files"]}
        assert {"config.json", "model.safetensors", "README.md", "unicuco.json"} <= names
        for file in result["files"]:
            data = client.get(f"/v1/checkpoints/{entered['id']}/files/{file['name']}").content
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        weights = f"/v1/checkpoints/{entered['id']}/files/model.safetensors"
        whole = client.get(weights).content
        part = client.get(weights, headers={"range": "bytes=100-199"})
        assert part.status_code == 206 and part.content == whole[100:200]
        assert client.get(weights, headers={"range": f"bytes={len(whole)}-"}).status_code == 416
        for bad in ("..%2f..%2fjobs.sqlite", "%2e%2e", "nothing.txt", "..%5cx", "a" * 300):
            assert client.get(f"/v1/checkpoints/{entered['id']}/files/{bad}").status_code in (404, 422)

        began = time.monotonic()
        twin = order(client)  # what lies there is not built again
        assert twin["state"] == "done" and twin["id"] != entered["id"] and time.monotonic() - began < 5
    logged = {e.eval_id: e for e in EvaluationLog(tiny_run / "evaluations").read()}
    (back,) = [e for name, e in logged.items() if name.startswith("checkpoint-")]
    assert list(back.levels) == entered["answer"]["levels"] and back.kl > 0


def test_impossible_requests_are_told_so_at_once(config: ServiceConfig) -> None:
    with serving(config, slow()) as client:
        reply = client.post("/v1/checkpoints", json={"request": {"params": 10}})
        assert reply.status_code == 422 and reply.json()["code"] == "infeasible"
        reply = client.post("/v1/checkpoints", json={"request": {"kept": 0.7}, "layout": "gguf"})
        assert reply.status_code == 422
        assert client.get("/v1/checkpoints").json() == {"checkpoints": [], "next": None}
        assert client.get("/v1/checkpoints/c-1").status_code == 422
        assert client.get(f"/v1/checkpoints/c-{'0' * 24}").status_code == 404


def test_a_replayed_call_is_the_first_one(config: ServiceConfig) -> None:
    with serving(config, slow()) as client:
        first, second = (order(client, 0.7, **{"idempotency-key": "k1"}) for _ in range(2))
        assert first["id"] == second["id"] and len(client.get("/v1/checkpoints").json()["checkpoints"]) == 1
        changed = client.post("/v1/checkpoints", json={"request": {"kept": 0.6}}, headers={"idempotency-key": "k1"})
        assert changed.status_code == 422 and changed.json()["code"] == "idempotency_key_reused"


def test_a_cancelled_build_stops_and_its_twin_does_not(config: ServiceConfig) -> None:
    builder = slow()
    with serving(config, builder) as client:
        one, twin, other = order(client), order(client), order(client, 0.5)
        wait_for(client, one["id"], "running")
        assert client.delete(f"/v1/checkpoints/{one['id']}").json()["state"] == "cancelled"
        assert client.get(f"/v1/checkpoints/{one['id']}/files/config.json").status_code == 409
        time.sleep(0.3)
        assert wait_for(client, twin["id"], "running") and not builder.closed  # somebody still waits for it
        client.delete(f"/v1/checkpoints/{twin['id']}")
        wait_for(client, other["id"], "running")
        assert len(builder.closed) == 1 and len(set(builder.started)) == 2
        assert client.delete(f"/v1/checkpoints/{one['id']}").json()["state"] == "cancelled"


def test_builds_that_cannot_be_made_say_why(config: ServiceConfig) -> None:
    async def fails(order: Build) -> AsyncIterator[Step]:
        yield "trying"
        if order.answer.kept > 0.6:
            raise CheckpointError("The disk is made of cheese.")
        raise ZeroDivisionError("secret detail")

    with serving(config, fails) as client:
        told = wait_for(client, order(client, 0.7)["id"])
        assert (told["state"], told["error"]) == ("failed", "The disk is made of cheese.")
        hidden = wait_for(client, order(client, 0.5)["id"])
        assert hidden["state"] == "failed" and "secret" not in hidden["error"]


def test_a_lost_replica_is_tried_again_and_a_restart_goes_on(config: ServiceConfig) -> None:
    tries: list[str] = []
    real = threaded(config)

    async def loses_twice(order: Build) -> AsyncIterator[Step]:
        tries.append(order.build)
        yield "trying"
        if len(tries) == 1:
            raise ConnectionError("the replica is gone")
        if len(tries) == 2:
            await asyncio.sleep(3600)  # the owner of the table is restarted meanwhile
        async for step in real(order):
            yield step

    with serving(config, loses_twice) as client:
        entered = order(client, 0.6)
        until = time.monotonic() + 30
        while len(tries) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    with serving(config, loses_twice) as client:
        ended = wait_for(client, entered["id"])
        assert ended["state"] == "done" and len(tries) == 3
        events = [e for e in client.get(f"/v1/checkpoints/{entered['id']}/events").text.split("\n") if e[:5] == "event"]
        assert events.count("event: done") == 1


def test_old_files_are_removed_and_said_to_be(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.service.jobs.SWEEP_SECONDS", 0.1)
    config = config_of(tiny_run, tmp_path, limits={"retention_days": 3 / 86400})
    with serving(config) as client:
        entered = order(client)
        wait_for(client, entered["id"], "done")
        assert len(list(config.storage.iterdir())) == 3  # the folder, what is said of it, the owner's lock
        gone = wait_for(client, entered["id"], "expired")
        assert gone["result"] is not None  # what it was is still known
        assert client.get(f"/v1/checkpoints/{entered['id']}/files/config.json").status_code == 410
        until = time.monotonic() + 10
        while len(list(config.storage.iterdir())) > 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert [path.name for path in config.storage.iterdir()] == [".owner"]
