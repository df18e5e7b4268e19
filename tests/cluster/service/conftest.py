"""One tiny run for all tests of the service, and an application on it that knows no Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from cluster.service.app import create_app
from cluster.service.building import CheckpointBuilder, stream_build
from cluster.service.config import ServiceConfig, make_config
from cluster.service.gateway import Gateway
from cluster.service.jobs import Builder, Builders, Jobs
from cluster.service.table import CheckpointTable
from tests.cluster.service.tiny_run import make_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("service"))


@pytest.fixture
def config(tiny_run: Path, tmp_path: Path) -> ServiceConfig:
    return config_of(tiny_run, tmp_path)


def config_of(run: Path | str, folder: Path, **changes: Any) -> ServiceConfig:
    return make_config(
        {
            "policies": {"tiny": {"path": run, "dtype": "float32"}},
            "storage": folder / "checkpoints",
            "database": f"sqlite:///{folder / 'jobs.sqlite'}",
            **changes,
        }
    )


def threaded(config: ServiceConfig, name: str = "tiny") -> Builder:
    """The real builder, at work in a thread."""
    builder = CheckpointBuilder(config.policies[name], config.storage)

    return lambda order: stream_build(builder, order)


@contextmanager
def serving(config: ServiceConfig, builder: Builder | None = None, at_once: int = 1) -> Iterator[TestClient]:
    """A client of the whole service in this process."""
    with jobs_in_a_loop(config, builder or threaded(config), at_once) as (jobs, portal):
        gateway = Gateway(config, Bridge(jobs, portal))
        with TestClient(create_app(gateway), raise_server_exceptions=False) as client:
            yield client


@contextmanager
def jobs_in_a_loop(
    config: ServiceConfig, builder: Builder, at_once: int = 1
) -> Iterator[tuple[Jobs, asyncio.AbstractEventLoop]]:
    """``Jobs`` in an event loop of its own, as in its own process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        builders = {name: Builders(builder, at_once) for name in config.policies}

        async def begin() -> Jobs:
            jobs = Jobs(CheckpointTable(config.database), config.storage, builders, config.limits, (ConnectionError,))
            await jobs.start()
            return jobs

        jobs = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        try:
            yield jobs, loop
        finally:
            asyncio.run_coroutine_threadsafe(jobs.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """``app`` on a port of its own; yields its address."""
    # Ended in order, or what waits for the end of the application is left to the garbage collector.
    settings = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Bridge:
    """Calls ``Jobs`` in its own loop from another one."""

    def __init__(self, jobs: Jobs, loop: asyncio.AbstractEventLoop) -> None:
        self._jobs, self._loop = jobs, loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._jobs, name)

        async def call(*args: Any) -> Any:
            future: Future[Any] = asyncio.run_coroutine_threadsafe(method(*args), self._loop)
            return await asyncio.wrap_future(future)

        return call
