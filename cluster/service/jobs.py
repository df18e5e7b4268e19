"""Checkpoints as jobs: entered, built one after another by each pruning replica, watched, cancelled, removed.

Knows no Ray: a builder is anything that makes an asynchronous stream of steps of a build.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from cluster.service.config import LimitsConfig, ServiceError
from cluster.service.table import Build, CheckpointTable, Order
from unicuco.errors import UniCuCoError
from unicuco.wire import Checkpoint, CheckpointResult, Event

LOG = logging.getLogger("unicuco.service")
T = TypeVar("T")
Step = str | CheckpointResult
"""What a build says: the stage that begins, and at last its result."""
Builder = Callable[[Build], AsyncIterator[Step]]
SWEEP_SECONDS = 60.0
OWNER_SECONDS = 60.0
"""How long a new owner waits for the one before to let go."""
RESULT = ".result.json"
"""Beside a checkpoint's folder, in its storage: what is said of it. Written last."""


@dataclass(frozen=True)
class Builders:
    """How checkpoints of one policy are built, and how many at once."""

    build: Builder
    at_once: int = 1


class Jobs:
    """The owner of the table. All methods are asynchronous; what is asked of the database runs in one thread.

    Args:
        lost: exceptions that say a replica is gone, and nothing of the build: it is tried again.
    """

    def __init__(
        self,
        table: CheckpointTable,
        storage: Path,
        builders: Mapping[str, Builders],
        limits: LimitsConfig | None = None,
        lost: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._table, self._storage, self._limits, self._lost = table, Path(storage), limits or LimitsConfig(), lost
        self._builders = builders
        self._lock = FileLock(self._storage / ".owner", thread_local=False)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._news = asyncio.Condition()
        self._orphaned: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Puts back what an earlier owner left running, and begins to build."""
        self._storage.mkdir(parents=True, exist_ok=True)
        try:
            await asyncio.to_thread(self._lock.acquire, timeout=OWNER_SECONDS)
        except Timeout as error:
            raise ServiceError(
                f"Another service builds checkpoints in {self._storage}; give this one its own."
            ) from error
        await self._ask(self._table.requeue)
        for policy, builders in self._builders.items():
            for _ in range(builders.at_once):
                self._tasks.append(asyncio.create_task(self._work(policy, builders.build)))
        self._tasks.append(asyncio.create_task(self._sweep()))

    async def stop(self) -> None:
        """Ends the builds under way; the next owner takes them up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._thread.shutdown()
        self._table.close()
        self._lock.release()

    # -- for callers ----------------------------------------------------------------------------------------------

    async def submit(self, owner: str, order: Order) -> tuple[Checkpoint, bool]:
        """See ``CheckpointTable.submit``; what lies there already is done at once."""
        found, new = await self._ask(self._table.submit, owner, order, self._limits.active_checkpoints)
        if new:
            ready = await self._ask(self._table.built, order.build, time.time())
            if ready and (self._storage / order.build).is_dir():
                await self._ask(self._table.finish, order.build, ready[0], self._expires())
                found = await self._ask(self._table.get, owner, found.id)
            await self._tell()
        return found, new

    async def get(self, owner: str, checkpoint_id: str) -> Checkpoint:
        return await self._ask(self._table.get, owner, checkpoint_id)

    async def page(self, owner: str, after: str | None, limit: int) -> tuple[list[Checkpoint], str | None]:
        return await self._ask(self._table.page, owner, after, limit)

    async def cancel(self, owner: str, checkpoint_id: str) -> Checkpoint:
        """Cancelled at once; a build that nobody waits for stops at its next stage."""
        found, orphan = await self._ask(self._table.cancel, owner, checkpoint_id)
        if orphan and orphan in self._orphaned:
            self._orphaned[orphan].set()
        await self._tell()
        return found

    async def events(self, owner: str, checkpoint_id: str, after: int, wait: float) -> list[Event]:
        """Steps after ``after``; where there are none yet and more will come, waits up to ``wait`` seconds."""
        until = time.monotonic() + wait
        while True:
            async with self._news:
                found = await self._ask(self._table.events, owner, checkpoint_id, after)
                left = until - time.monotonic()
                if found or left <= 0:
                    return found
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), left)

    async def counts(self) -> dict[str, int]:
        return await self._ask(self._table.counts)

    # -- building -------------------------------------------------------------------------------------------------

    async def _work(self, policy: str, builder: Builder) -> None:
        while True:
            async with self._news:
                build = await self._ask(self._table.take, policy, list(self._orphaned))
                if build is None:
                    await self._news.wait()
                    continue
            await self._tell()
            try:
                await self._build(build, builder)
            except asyncio.CancelledError:
                raise
            except Exception:  # the database is gone, say: this build stays as it is until the next start
                LOG.exception("build %s was left", build.build)
                await asyncio.sleep(1.0)
            await self._tell()

    async def _build(self, build: Build, builder: Builder) -> None:
        orphaned = self._orphaned[build.build] = asyncio.Event()
        steps = builder(build)
        try:
            async for step in steps:
                if isinstance(step, CheckpointResult):
                    if not await self._ask(self._table.finish, build.build, step, self._expires()):
                        await self._remove(build.build)  # everybody has cancelled meanwhile
                    return
                if orphaned.is_set():
                    LOG.info("build %s: nobody waits for it any more", build.build)
                    await self._ask(self._table.requeue, build.build)  # somebody may have come since
                    return
                await self._ask(self._table.stage, build.build, step)
                await self._tell()
            raise RuntimeError("the build ended without a result")
        except self._lost as error:
            LOG.warning("build %s: its replica was lost: %s", build.build, error)
            await self._ask(self._table.requeue, build.build)
            await asyncio.sleep(1.0)
        except UniCuCoError as error:
            await self._ask(self._table.fail, build.build, str(error))
        except Exception:
            LOG.exception("build %s failed", build.build)
            await self._ask(self._table.fail, build.build, "Something went wrong here; the service's log has more.")
        finally:
            del self._orphaned[build.build]
            if isinstance(steps, AsyncIterator) and hasattr(steps, "aclose"):
                await steps.aclose()

    async def _sweep(self) -> None:
        while True:
            with suppress(Exception):
                for build in await self._ask(self._table.expire, time.time()):
                    await self._remove(build)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _remove(self, build: str) -> None:
        def remove() -> None:
            (self._storage / f"{build}{RESULT}").unlink(missing_ok=True)  # first: without it there is no checkpoint
            shutil.rmtree(self._storage / build, ignore_errors=True)

        await asyncio.to_thread(remove)

    def _expires(self) -> float:
        return time.time() + self._limits.retention_days * 86400

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _ask(self, method: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: method(*args))
