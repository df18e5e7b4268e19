"""The client against a real service over TCP: what it reads, what it repeats, what it refuses to believe."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.service.app import create_app
from cluster.service.config import ServiceConfig
from cluster.service.gateway import Gateway
from cluster.service.keys import KeyFile
from tests.cluster.service.conftest import Bridge, config_of, jobs_in_a_loop, listening, threaded
from unicuco.client import Client, ServiceCallError
from unicuco.policy import Policy
from unicuco.request import Request


class Weather:
    """An ASGI application in front of another: refuses, breaks off and falsifies as it is told to.

    Attributes:
        faults: what happens to the next calls, one each; then all goes well.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.faults, self.calls = inner, list[str](), list[tuple[str, str]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        self.calls.append((scope["method"], scope["path"]))
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("429", "503"):
            await send({"type": "http.response.start", "status": int(fault), "headers": [(b"retry-after", b"0")]})
            await send({"type": "http.response.body", "body": b"busy"})
            return

        async def changed(message: Any) -> None:
            body = message.get("body", b"")
            if fault == "break" and body:
                await send({**message, "body": body[: len(body) // 2], "more_body": True})
                raise ConnectionResetError
            if fault == "falsify" and body:
                message = {**message, "body": bytes([body[0] ^ 1]) + body[1:]}
            await send(message)

        await self.inner(scope, receive, changed)
        if fault == "lost":  # it was done, and nobody is told
            raise ConnectionResetError


@pytest.fixture
def weather(config: ServiceConfig) -> Iterator[tuple[Weather, str]]:
    yield from in_weather(config)


def in_weather(config: ServiceConfig) -> Iterator[tuple[Weather, str]]:
    with jobs_in_a_loop(config, threaded(config)) as (jobs, loop):
        weather = Weather(create_app(Gateway(config, Bridge(jobs, loop))))
        with listening(weather) as address:
            yield weather, address


def test_it_reads_what_the_policy_says(weather: tuple[Weather, str], tiny_run: Path) -> None:
    with Client(weather[1]) as client:
        asked: list[Any] = [Request(kept=0.7), {"preference": [0.3, 0.7]}]
        own = Policy.load(tiny_run).answer([Request(kept=0.7), Request(preference=(0.3, 0.7))], bytes_per_param=4)
        assert client.answer(asked) == own
        (policy,) = client.policies()
        assert client.front(policy.name).promised[0].kept == 1
        with pytest.raises(ServiceCallError) as refused:
            client.answer([{"kept": 7}])
        assert (refused.value.status, refused.value.code) == (422, "invalid") and "kept" in str(refused.value)


def test_busy_and_broken_calls_are_repeated_and_orders_entered_once(weather: tuple[Weather, str]) -> None:
    faults, address = weather
    with Client(address) as client:
        faults.faults = ["503", "429", "break"]
        assert len(client.answer([{"kept": 0.7}])) == 1
        assert len([call for call in faults.calls if call[1] == "/v1/answers"]) == 4
        faults.faults = ["503", "break"]
        made = client.order({"kept": 0.7})
        assert [checkpoint.id for checkpoint in client.checkpoints()] == [made.id]
        client.cancel(made.id)
    impatient = Client(address, patience=0.1)
    faults.faults = ["503"] * 100
    with pytest.raises(ServiceCallError) as refused:
        impatient.policies()
    assert refused.value.status == 503


def test_a_checkpoint_arrives_whole_through_bad_weather(weather: tuple[Weather, str], tmp_path: Path) -> None:
    faults, address = weather
    with Client(address) as client:
        order = client.order({"kept": 0.6})
        faults.faults = ["break", "break"]
        steps: list[int] = []
        made = client.wait(order.id, lambda event: steps.append(event.seq))
        assert steps == sorted(set(steps)) and made.result is not None
        faults.faults = ["", "break", "", "break"]  # the record, a file, its rest
        folder = client.download(made.id, tmp_path / "made")
        for file in made.result.files:
            assert hashlib.sha256((folder / file.name).read_bytes()).hexdigest() == file.sha256
        faults.faults = ["", "falsify"]
        with pytest.raises(ServiceCallError, match="arrived different"):
            client.download(made.id, tmp_path / "again")
        assert [path.name for path in tmp_path.iterdir() if "again" in path.name] == []
        with pytest.raises(ServiceCallError, match="exists"):
            client.download(made.id, folder)


def test_who_is_no_service_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ServiceCallError, match="does not answer"):
        Client("http://127.0.0.1:9", patience=0.2).policies()
    for wrong in ("http://[", "http://", "ftp://here", "localhost:8000", ""):
        with pytest.raises(ServiceCallError, match="is no address of a service"):
            Client(wrong)


def test_the_command_line_asks_a_service_with_its_key(tiny_run: Path, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("me")
    config = config_of(tiny_run, tmp_path, keys=file.path)
    for _, address in in_weather(config):
        run = CliRunner()
        refused = run.invoke(app, ["answer", address, "--kept", "0.7"])
        assert isinstance(refused.exception, ServiceCallError) and "API key" in str(refused.exception)
        told = run.invoke(app, ["answer", f"{address}#tiny", "--kept", "0.7"], env={"UNICUCO_KEY": key})
        assert told.exit_code == 0 and "policy 'tiny'" in told.output.replace("\n", " ")
        target = tmp_path / "fetched"
        command = ["prune", address, "--kept", "0.7", "--output", str(target)]
        made = run.invoke(app, command, env={"UNICUCO_KEY": key})
        assert made.exit_code == 0, made.output
        assert (target / "model.safetensors").is_file() and "measured" in made.output
        shutil.rmtree(target)
