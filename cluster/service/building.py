"""What a pruning replica does: keeps a base model pinned and turns answers into checkpoints in the storage.

A finished folder is put in its place in one step, under a name that says what is in it; so a build that is repeated
after a crash finds its own result, and equal checkpoints are one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

from cluster.service.config import PolicyConfig
from cluster.service.jobs import RESULT, Step
from cluster.service.table import Build
from unicuco.checkpoint import Layout
from unicuco.checkpoint.card import PROVENANCE
from unicuco.errors import UniCuCoError
from unicuco.evaluations import Candidate
from unicuco.evaluator import EvaluatorConfig
from unicuco.latency import LatencyTable
from unicuco.models.spread import devices_for
from unicuco.policy import Policy
from unicuco.prune import Pinned, Pruned, Writing, pin
from unicuco.remote.fetch import writable_log
from unicuco.remote.nodes import pruning_folder
from unicuco.storage import content_hash, file_digest, write_json
from unicuco.wire import CheckpointFile, CheckpointResult

LOG = logging.getLogger("unicuco.service")


class BuildStoppedError(Exception):
    """Nobody waits for this build any more."""


def build_key(policy: Policy, levels: list[int], layout: str, dtype: str) -> str:
    """Equal for equal checkpoints, across policies and their versions."""
    parts = policy.parts
    prepared = parts.provenance.get("preparation", {}).get("digest", "")
    return content_hash([parts.provenance.get("model", {}).get("digest", ""), prepared, levels, layout, dtype])[:32]


class CheckpointBuilder:
    """Builds checkpoints of one policy, one at a time."""

    def __init__(self, config: PolicyConfig, storage: Path) -> None:
        self._config, self._storage = config, Path(storage)
        self._pinned: Pinned | None = None
        self._tables: dict[str, LatencyTable] = {}

    def open(self) -> Pinned:
        """Pins the base model; again only where the policy's preparation has changed.

        Raises:
            UniCuCoError: what is wrong with the policy, the model or the preparation.
        """
        policy = Policy.load(pruning_folder(self._config.path))
        self._tables = policy.timed.tables
        wanted = policy.parts.provenance.get("preparation", {}).get("digest", "")
        if self._pinned is None or self._pinned.evaluator.preparation.digest != wanted:
            device = devices_for(self._config.device, self._config.num_gpus)
            config = EvaluatorConfig(dtype=self._config.dtype, device=device, threads=self._config.threads)
            self._pinned = None  # two base models may not fit
            self._pinned = pin(policy, self._config.model, config)
        return self._pinned

    def build(self, order: Build, stage: Callable[[str], None]) -> CheckpointResult:
        """Builds ``order``; what ``stage`` raises when it is told what begins ends the build.

        Raises:
            UniCuCoError: why it cannot be built; nothing is left behind.
        """
        began = time.monotonic()
        target = self._storage / order.build
        if (found := read_result(target)) is not None:
            return found
        stage("pinning the base model")
        pinned = self.open()
        answer = order.answer
        how, table = Writing(cast(Layout, order.layout), replace=True), self._tables.get(answer.latency_table or "")
        made = pinned.write(answer.request, answer, target, how, stage=stage, table=table)
        result = _result(made, target, time.monotonic() - began)
        write_json(target.with_name(target.name + RESULT), result.model_dump())
        stage("measuring for the run's log")
        self._give_back(pinned, order)
        return result

    def _give_back(self, pinned: Pinned, order: Build) -> None:
        """What was built is measured as training measures, and goes to the run's log, once."""
        candidate = Candidate(f"checkpoint-{order.build}", tuple(order.answer.levels), "checkpoint")
        try:
            with writable_log(self._config.path) as log:
                if log is not None:
                    log.append(pinned.evaluator.evaluate(candidate))
        except UniCuCoError as error:  # the checkpoint is good all the same
            LOG.warning("the measurement of build %s was not logged: %s", order.build, error)


async def stream_build(builder: CheckpointBuilder, order: Build) -> AsyncIterator[Step]:
    """The stages of a build as they begin, then its result. Closing the stream ends the build at its next stage."""
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[Step] = asyncio.Queue()
    stop = threading.Event()

    def stage(name: str) -> None:
        if stop.is_set():
            raise BuildStoppedError
        loop.call_soon_threadsafe(steps.put_nowait, name)

    building = asyncio.ensure_future(asyncio.to_thread(builder.build, order, stage))
    step: asyncio.Future[Step] | None = None
    try:
        while True:
            step = asyncio.ensure_future(steps.get())
            await asyncio.wait((step, building), return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                yield step.result()
                continue
            step.cancel()
            while not steps.empty():
                yield steps.get_nowait()
            yield building.result()
            return
    finally:
        stop.set()
        if step is not None:
            step.cancel()  # it would wait for ever where the stream is closed early
        with contextlib.suppress(BuildStoppedError, asyncio.CancelledError):
            if not building.done():
                await asyncio.shield(building)


def read_result(target: Path) -> CheckpointResult | None:
    """What was said of a checkpoint that lies at ``target``; None: there is none, or not all of it."""
    record = target.with_name(target.name + RESULT)
    try:
        found = CheckpointResult.model_validate_json(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    there = all((target / file.name).is_file() for file in found.files)
    return found if there else None


def _result(made: Pruned, target: Path, seconds: float) -> CheckpointResult:
    about = json.loads((target / PROVENANCE).read_text(encoding="utf-8"))
    files = made.checkpoint.files  # with digests; the record that holds them is not among them
    names = sorted(path.name for path in target.iterdir() if path.is_file())
    listed = [
        CheckpointFile(
            name=name,
            bytes=(target / name).stat().st_size,
            sha256=str(files.get(name, {}).get("sha256") or file_digest(target / name)),
        )
        for name in names
    ]
    size = made.checkpoint.size
    return CheckpointResult(
        uri=target.resolve().as_uri(),
        files=listed,
        bytes=sum(file.bytes for file in listed),
        params=size.params,
        measured=about.get("measured", {}),
        verified=made.checkpoint.verification is not None,
        seconds=seconds,
    )
