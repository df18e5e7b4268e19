"""What the routes call: policies, answers, and the owner of the table of checkpoints, wherever that runs."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from cluster.service.building import build_key
from cluster.service.config import ServiceConfig
from cluster.service.keys import Keys, RateLimit
from cluster.service.policies import Offered, Policies
from cluster.service.problems import ProblemError
from cluster.service.table import Order
from unicuco.request import Answer, Request
from unicuco.wire import Checkpoint, CheckpointCall, Event

AT_ONCE_HERE = 64
"""Requests that are answered in the event loop: about ten milliseconds."""


class JobsProxy(Protocol):
    """``Jobs``, or its handle in another process."""

    async def submit(self, owner: str, order: Order) -> tuple[Checkpoint, bool]: ...
    async def get(self, owner: str, checkpoint_id: str) -> Checkpoint: ...
    async def page(self, owner: str, after: str | None, limit: int) -> tuple[list[Checkpoint], str | None]: ...
    async def cancel(self, owner: str, checkpoint_id: str) -> Checkpoint: ...
    async def events(self, owner: str, checkpoint_id: str, after: int, wait: float) -> list[Event]: ...


class Gateway:
    """One replica of the front: answers by itself, passes checkpoints on.

    Small batches are computed in the event loop: a few milliseconds, during which the next calls gather. In a thread
    the two would fight for the interpreter's lock, and batches stay small. Large ones have a thread of their own.
    """

    def __init__(self, config: ServiceConfig, jobs: JobsProxy) -> None:
        self.config, self.jobs = config, jobs
        self.policies, self.keys = Policies(config.policies), Keys(config.keys)
        self.rate = RateLimit(config.limits.calls_per_second)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look for new versions of policies."""
        self._watching = self._watching or asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._thread.shutdown()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.config.watch_seconds)
            await asyncio.to_thread(self.policies.refresh)

    async def answer(self, offered: Offered, requests: list[Request]) -> list[Answer]:
        """Answers of one version of a policy, in order."""
        return (await self.answer_all([(offered, requests)]))[0]

    async def answer_all(self, calls: list[tuple[Offered, list[Request]]]) -> list[list[Answer]]:
        """Several calls in as few batches as there are policies among them."""
        if sum(len(requests) for _, requests in calls) <= AT_ONCE_HERE:
            return answer_together(calls)
        return await asyncio.get_running_loop().run_in_executor(self._thread, answer_together, calls)

    async def order(self, owner: str, call: CheckpointCall, body: bytes, key: str | None) -> tuple[Checkpoint, bool]:
        """Answers the request now and enters its checkpoint.

        Raises:
            ProblemError: 422 where no strategy meets the request; what the table refuses.
        """
        offered = self.policies.get(call.policy)
        offered.check({"body.request": call.request})
        answer = (await self.answer(offered, [call.request]))[0]
        if not answer.feasible:
            raise ProblemError(422, "infeasible", answer.note)
        dtype = self.config.policies[offered.name].dtype
        build = build_key(offered.policy, answer.levels, call.layout, dtype)
        order = Order(offered.name, call.layout, build, answer, key, hashlib.sha256(body).hexdigest())
        return await self.jobs.submit(owner, order)

    def file(self, checkpoint: Checkpoint, name: str) -> Path:
        """A file of a finished checkpoint.

        Raises:
            ProblemError: 404 where it is not one of its files, 409 where there are none yet, 410 where they are gone.
        """
        result = checkpoint.result
        if checkpoint.state == "expired":
            raise ProblemError(410, "expired", "The checkpoint has expired; ask for it again.")
        if result is None:
            raise ProblemError(409, "not_done", f"The checkpoint is {checkpoint.state}; there are no files.")
        if name not in {file.name for file in result.files}:
            raise ProblemError(404, "unknown_file", "The checkpoint has no such file.")
        folder = Path(result.uri.removeprefix("file://"))
        if not (folder / name).is_file():
            raise ProblemError(410, "gone", "The checkpoint's files are gone from the storage; ask for it again.")
        return folder / name


def answer_together(calls: list[tuple[Offered, list[Request]]]) -> list[list[Answer]]:
    """All requests of one version of a policy as one batch."""
    replies: list[list[Answer]] = [[] for _ in calls]
    versions: dict[tuple[str, str], list[int]] = {}
    for i, (offered, _) in enumerate(calls):
        versions.setdefault((offered.name, offered.digest), []).append(i)
    for members in versions.values():
        answers = iter(calls[members[0]][0].answer([request for i in members for request in calls[i][1]]))
        for i in members:
            replies[i] = [next(answers) for _ in calls[i][1]]
    return replies
