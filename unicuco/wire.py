"""What goes between a service and its callers under ``/v1``: both sides read and write these models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unicuco.request import Answer, Request

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of policies and API keys: they appear in URLs and logs."""

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
ACTIVE: tuple[State, ...] = ("queued", "running")
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "expired")

PolicyChoice = Annotated[
    str | None,
    Field(pattern=f"^{NAME.pattern}$", description="Name of the policy; may be left out where there is one only."),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AnswersCall(_Body):
    """One or many requests."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"kept": 0.7}, {"id": "phone", "bytes": 200_000_000}]}]}
    )

    policy: PolicyChoice = None
    requests: list[Request] = Field(min_length=1)


class AnswersReply(BaseModel):
    """An answer to every request, in order."""

    policy: str
    version: int
    """Of the policy: it counts its trainings."""
    digest: str
    """Content of the policy that answered."""
    answers: list[Answer]


class CheckpointCall(_Body):
    """Build the checkpoint that answers ``request``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"request": {"kept": 0.7}, "layout": "hetero"}]})

    policy: PolicyChoice = None
    request: Request
    layout: Literal["hetero", "padded"] = "hetero"


class CheckpointFile(BaseModel):
    name: str
    bytes: int
    sha256: str


class CheckpointResult(BaseModel):
    """A finished checkpoint. ``measured``: on fresh text; ``uri``: where it lies for whoever shares the storage."""

    uri: str
    files: list[CheckpointFile]
    bytes: int
    params: int
    measured: dict[str, Any]
    verified: bool
    seconds: float


class Checkpoint(BaseModel):
    """One asked-for checkpoint and how far it is."""

    id: str
    state: State
    stage: str = ""
    """What is being done while it runs."""
    policy: str
    layout: str
    answer: Answer
    created: float
    updated: float
    expires: float | None = None
    """Unix time after which its files are removed."""
    error: str | None = None
    result: CheckpointResult | None = None


class CheckpointList(BaseModel):
    """Newest first; ``next`` is the ``after`` of the next page, or null."""

    checkpoints: list[Checkpoint]
    next: str | None


class Event(BaseModel):
    """A step of a checkpoint; ``seq`` grows by one and never repeats."""

    seq: int
    time: float
    state: State
    stage: str


class LatencyDescription(BaseModel):
    """A latency table of a policy: requests name it by ``latency`` and bound it by ``max_latency_ms``."""

    name: str
    workload: str
    device: str
    dense_ms: float
    fastest_ms: float
    error: float | None
    """Largest relative error on whole models that the table did not see."""


class PolicyDescription(BaseModel):
    """A policy on offer."""

    name: str
    model: str
    version: int
    digest: str
    evaluations: int
    blocks: int
    groups: list[int]
    """KV groups of every block when it is dense."""
    neurons: list[int]
    """MLP neurons of every block when it is dense."""
    smallest_kept: float
    objectives: list[str]
    layouts: list[str] = ["hetero", "padded"]
    latency: list[LatencyDescription] = []


class PolicyList(BaseModel):
    policies: list[PolicyDescription]


class FrontPoint(BaseModel):
    kept: float
    bytes: int
    kl: float
    kl_low: float
    kl_high: float


class Front(BaseModel):
    """What a policy promises over its sizes, from dense to small, and what was measured of it."""

    policy: str
    version: int
    promised: list[FrontPoint]
    measured: list[tuple[float, float]]
    """(kept, KL on the search windows) of the strategies that no other one beats."""


class Problem(BaseModel):
    """An error as RFC 9457 has it. ``type`` is ``about:blank`` plus a word that programs can tell apart in ``code``."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    instance: str
    """Id of the call: it stands in the service's log."""
    errors: list[dict[str, Any]] | None = None
    """Where a body is wrong, and how."""
