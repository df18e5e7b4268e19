"""The service on a real Ray Serve: the same answers, checkpoints that survive the loss of any process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from tests.cluster.service.conftest import config_of
from tests.cluster.service.test_checkpoints import wait_for
from unicuco.policy import Policy
from unicuco.request import Request

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def client(ray_session: None, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    from ray import serve

    from cluster.service.deployments import build

    port = free_port()
    config = config_of(tiny_run, tmp_path_factory.mktemp("served"))
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(build(config), name="unicuco", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        serve.shutdown()


def replicas(deployment: str) -> list[int]:
    """Process ids of a deployment's replicas."""
    return processes(f"ray::ServeReplica:unicuco:{deployment}")


def processes(title: str) -> list[int]:
    """Ray names its processes after what runs in them. Those of another service on this machine are not ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):
                found.append(process.pid)
    return found


def test_answers_over_http_are_the_policys_own_however_they_are_batched(client: httpx.Client, tiny_run: Path) -> None:
    own = Policy.load(tiny_run)
    wrong: list[object] = []

    def ask(i: int) -> None:
        requests = [{"kept": 0.4 + 0.05 * i}, {"preference": [0.1 * (i + 1), 1]}][: 1 + i % 2]
        reply = client.post("/v1/answers", json={"requests": requests})
        expected = own.answer([Request(**r) for r in requests], bytes_per_param=4)
        if [a["levels"] for a in reply.json()["answers"]] != [a.levels for a in expected]:
            wrong.append(reply.text)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    bad = client.post("/v1/answers", json={"requests": [{"kept": 7}]})
    assert bad.status_code == 422 and bad.headers["content-type"] == "application/problem+json"


def test_prometheus_finds_the_calls_it_can_be_told_of(client: httpx.Client) -> None:
    import ray

    for body in ({"requests": [{"kept": 0.7}]}, {"requests": [{"kept": 7}]}):
        client.post("/v1/answers", json=body)
    (port,) = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    wanted = ('status="422"', "ray_unicuco_call_seconds_bucket{", "ray_unicuco_checkpoints{")
    until, found = time.monotonic() + 60, ""
    while time.monotonic() < until and not all(part in found for part in wanted):
        time.sleep(1)
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        found = "\n".join(line for line in page.splitlines() if line.startswith("ray_unicuco"))
    counts = [line for line in found.splitlines() if line.startswith("ray_unicuco_calls_total{")]
    for status in ("200", "422"):
        (line,) = [c for c in counts if f'status="{status}"' in c and 'route="/v1/answers"' in c]
        assert float(line.rsplit(" ", 1)[1]) >= 1
    assert all(part in found for part in wanted)


def enter(client: httpx.Client, kept: float) -> str:
    reply = client.post("/v1/checkpoints", json={"request": {"kept": kept}})
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


@pytest.mark.parametrize(("deployment", "kept"), [("pruning-tiny", 0.75), ("jobs", 0.65)])
def test_a_checkpoint_survives_the_death_of_who_makes_it(client: httpx.Client, deployment: str, kept: float) -> None:
    name = enter(client, kept)
    wait_for(client, name, "running", "done")  # type: ignore[arg-type]
    (pid,) = replicas(deployment)
    os.kill(pid, signal.SIGKILL)
    answered = client.post("/v1/answers", json={"requests": [{"kept": 0.7}]})
    assert answered.status_code == 200  # answers have nothing to do with it
    ended = _patiently(lambda: wait_for(client, name, "done", "failed", "cancelled", seconds=120))  # type: ignore[arg-type]
    assert ended["state"] == "done", ended["error"]
    with client.stream("GET", f"/v1/checkpoints/{name}/events") as stream:
        told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [event["state"] for event in told].count("done") == 1


def test_a_storm_loses_no_checkpoint_and_answers_come_back(client: httpx.Client) -> None:
    """Controller and proxy die while calls come in and a checkpoint is made."""
    name = enter(client, 0.55)
    stop, seen = threading.Event(), list[int]()

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(client.post("/v1/answers", json={"requests": [{"kept": 0.7}]}).status_code)
            except httpx.HTTPError:
                seen.append(0)
                time.sleep(0.1)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    try:
        for title in ("ray::ServeController", "ray::ProxyActor", "ray::ServeController"):
            time.sleep(1)
            pids = processes(title)
            assert pids, title
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            _patiently(lambda: client.get("/v1/policies").raise_for_status().json())
        ended = _patiently(lambda: wait_for(client, name, "done", "failed", "cancelled", seconds=120))  # type: ignore[arg-type]
        before = len(seen)
        until = time.monotonic() + 60
        while time.monotonic() < until and len(seen) < before + 20:
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    assert ended["state"] == "done", ended["error"]
    assert set(seen) <= {200, 503, 0}, "only what is documented, and connections that broke"
    assert set(seen[-10:]) == {200}


def _patiently(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """While the owner of the table is being replaced, looks fail."""
    until = time.monotonic() + 120
    while True:
        try:
            return look()
        except (KeyError, ValueError, httpx.HTTPError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def test_the_command_serves_and_stops_when_told(tiny_run: Path, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "UNICUCO_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cluster.cli", "serve", f"small={tiny_run}", "--port", str(port)]
    command += ["--storage", str(tmp_path / "made"), "--database", f"sqlite:///{tmp_path / 'jobs.sqlite'}"]
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    with open(tmp_path / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while time.monotonic() < until and process.poll() is None:
                try:
                    reply = httpx.post(f"http://127.0.0.1:{port}/v1/answers", json={"requests": [{"kept": 0.7}]})
                    if reply.status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.5)
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert reply.json()["policy"] == "small"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
