"""The service on Ray Serve: a gateway, the one owner of the table, and a pool of pruning replicas per policy.

    serve run cluster.service.deployments:build policies='{"small": {"path": "/abs/runs/first"}}'
    serve deploy cluster/service.yaml

``unicuco serve`` does the same on this machine. A second hop costs an answer two to three times its latency, so the
gateway holds StratNet itself; only checkpoints travel on.
"""

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RaySystemError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from actors.runtime import original_error
from cluster.service.app import create_app
from cluster.service.building import CheckpointBuilder, stream_build
from cluster.service.config import ServiceConfig
from cluster.service.gateway import Gateway
from cluster.service.jobs import Builder, Builders, Jobs, Step
from cluster.service.policies import Offered
from cluster.service.table import Build, CheckpointTable, Order
from unicuco.request import Answer, Request
from unicuco.wire import Checkpoint, Event

LOST = (RayActorError, RaySystemError, DeploymentUnavailableError)
GATEWAY_CPUS = 0.5
STREAMS = 64
"""Event streams and downloads beside the answers of a replica."""
QUEUED = 128


class PruningReplica:
    """Pins the base model of one policy."""

    def __init__(self, config: ServiceConfig, policy: str) -> None:
        _join_logs()
        self._builder = CheckpointBuilder(config.policies[policy], config.storage)
        self._one = asyncio.Lock()
        threading.Thread(target=self._warm, daemon=True, name="pin").start()

    def _warm(self) -> None:
        try:
            self._builder.open()
        except Exception:
            logging.getLogger("unicuco.service").exception("the base model is not there yet")

    async def build(self, order: Build) -> AsyncIterator[Step]:
        async with self._one:
            async for step in stream_build(self._builder, order):
                yield step


class JobsReplica:
    """Owns the table."""

    async def __init__(self, config: ServiceConfig, pruners: dict[str, DeploymentHandle]) -> None:  # type: ignore[misc]
        _join_logs()
        builders = {name: Builders(_remote(pruners[name]), config.policies[name].replicas) for name in pruners}
        table = CheckpointTable(config.database)
        self._jobs = Jobs(table, config.storage, builders, config.limits, LOST)
        self._gauge = metrics.Gauge("unicuco_checkpoints", "Checkpoints in every state.", tag_keys=("state",))
        await self._jobs.start()
        self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            for state, number in (await self._jobs.counts()).items():
                self._gauge.set(number, tags={"state": state})
            await asyncio.sleep(5)

    async def call(self, method: str, *args: Any) -> Any:
        return await getattr(self._jobs, method)(*args)

    async def __del__(self) -> None:
        self._counting.cancel()
        await self._jobs.stop()


def _remote(pruner: DeploymentHandle) -> Builder:
    async def build(order: Build) -> AsyncIterator[Step]:
        steps: Any = pruner.options(stream=True).build.remote(order)
        try:
            async for step in steps:
                yield step
        except RayTaskError as error:
            raise original_error(error) from None
        finally:
            steps.cancel()

    return build


class RemoteJobs:
    """``Jobs`` behind a handle; its problems arrive as they were raised."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def submit(self, owner: str, order: Order) -> tuple[Checkpoint, bool]:
        return await self._call("submit", owner, order)

    async def get(self, owner: str, checkpoint_id: str) -> Checkpoint:
        return await self._call("get", owner, checkpoint_id)

    async def page(self, owner: str, after: str | None, limit: int) -> tuple[list[Checkpoint], str | None]:
        return await self._call("page", owner, after, limit)

    async def cancel(self, owner: str, checkpoint_id: str) -> Checkpoint:
        return await self._call("cancel", owner, checkpoint_id)

    async def events(self, owner: str, checkpoint_id: str, after: int, wait: float) -> list[Event]:
        return await self._call("events", owner, checkpoint_id, after, wait)

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._handle.call.remote(method, *args)
        except RayTaskError as error:
            raise original_error(error) from None


class GatewayReplica:
    """FastAPI and the policies in one process; calls that wait for one another are answered together."""

    def __init__(self, config: ServiceConfig, jobs: DeploymentHandle) -> None:
        _join_logs()
        self.gateway = _Batching(config, RemoteJobs(jobs), self)
        self._calls = metrics.Counter("unicuco_calls_total", "Calls by route and status.", tag_keys=("route", "status"))
        self._seconds = metrics.Histogram(
            "unicuco_call_seconds",
            "Duration of calls.",
            boundaries=[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5],
            tag_keys=("route",),
        )
        # What is there by now stays. The collector would look through all of it, torch and Ray included, again and
        # again while answers come and go, and every call would wait for that.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.gateway, self._observe)

    def _observe(self, route: str, status: int, seconds: float) -> None:
        self._calls.inc(1, tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
    async def answer_batch(self, calls: list[tuple[Offered, list[Request]]]) -> list[list[Answer]]:
        return await self.gateway.answer_all(calls)


class _Batching(Gateway):
    def __init__(self, config: ServiceConfig, jobs: RemoteJobs, replica: GatewayReplica) -> None:
        super().__init__(config, jobs)
        self._replica = replica

    async def answer(self, offered: Offered, requests: list[Request]) -> list[Answer]:
        return await self._replica.answer_batch((offered, requests))


def build(config: ServiceConfig) -> serve.Application:
    """The Serve application of a configuration; ``serve run`` and ``serve deploy`` check it by its type."""
    pruners = {
        name: _deployment(PruningReplica)
        .options(
            name=f"pruning-{name}",
            num_replicas=policy.replicas,
            ray_actor_options={"num_cpus": policy.num_cpus, "num_gpus": policy.num_gpus},
            max_ongoing_requests=2,  # one is built, one waits: the table is the queue
            graceful_shutdown_timeout_s=5,
        )
        .bind(config, name)
        for name, policy in config.policies.items()
    }
    jobs = (
        _deployment(JobsReplica)
        .options(
            name="jobs",
            num_replicas=1,
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=1000,  # every event stream waits here
            graceful_shutdown_timeout_s=5,
        )
        .bind(config, pruners)
    )
    limits, gateways = config.limits, config.gateways
    at_once = limits.calls_at_once + STREAMS
    scale: dict[str, Any] = {"num_replicas": gateways}
    if isinstance(gateways, tuple):
        scaling = {"min_replicas": gateways[0], "max_replicas": gateways[1], "target_ongoing_requests": 8}
        scale = {"autoscaling_config": scaling}
    return (
        _deployment(serve.ingress()(GatewayReplica))
        .options(
            name="gateway",
            ray_actor_options={"num_cpus": GATEWAY_CPUS},
            max_ongoing_requests=at_once,
            max_queued_requests=QUEUED,
            backpressure_config={"status_code": 503, "retry_after_s": 1},
            graceful_shutdown_timeout_s=5,
            **scale,
        )
        .bind(config, jobs)
    )


def _deployment(replica: type) -> serve.Deployment:
    return serve.deployment(replica)  # type: ignore[return-value]


def _join_logs() -> None:
    """Our lines go where the replica's own go: Serve's log files, in its format."""
    log = logging.getLogger("unicuco")
    log.parent, log.propagate = logging.getLogger("ray.serve"), True
    log.setLevel(logging.INFO)
