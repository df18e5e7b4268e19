"""``/v1/checkpoints``: enter, watch, list, cancel, fetch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from cluster.service.callers import GatewayHere, Owner
from cluster.service.gateway import JobsProxy
from cluster.service.problems import documented
from unicuco.wire import ACTIVE, ENDED, Checkpoint, CheckpointCall, CheckpointList, Event

EVENT_WAIT = 15.0
"""Seconds without news after which an event stream sends a comment, so that nobody takes it for dead."""
ID = "^c-[0-9a-f]{24}$"
CheckpointId = Annotated[str, Path(pattern=ID, examples=["c-0123456789abcdef01234567"])]

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"])


@router.post("", status_code=202, responses=documented(400, 401, 404, 413, 415, 422, 429, 500))
async def order(
    call: CheckpointCall,
    request: Request,
    response: Response,
    gateway: GatewayHere,
    owner: Owner,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, pattern="^[!-~]+$")] = None,
) -> Checkpoint:
    """Enters a checkpoint to be built. With the same ``Idempotency-Key`` a repeated call finds the first one."""
    found, _ = await gateway.order(owner, call, await request.body(), idempotency_key)
    response.headers["Location"] = f"/v1/checkpoints/{found.id}"
    return found


@router.get("", responses=documented(401, 404, 422, 429, 500))
async def page(
    gateway: GatewayHere,
    owner: Owner,
    after: Annotated[str | None, Query(pattern=ID)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> CheckpointList:
    """Your checkpoints, newest first."""
    found, following = await gateway.jobs.page(owner, after, limit)
    return CheckpointList(checkpoints=found, next=following)


@router.get("/{checkpoint_id}", responses=documented(401, 404, 422, 429, 500))
async def get(checkpoint_id: CheckpointId, gateway: GatewayHere, owner: Owner) -> Checkpoint:
    """How far it is; when it is done, its files and what was measured."""
    return await gateway.jobs.get(owner, checkpoint_id)


@router.delete("/{checkpoint_id}", responses=documented(401, 404, 422, 429, 500))
async def cancel(checkpoint_id: CheckpointId, gateway: GatewayHere, owner: Owner) -> Checkpoint:
    """Cancels it, unless it has ended."""
    return await gateway.jobs.cancel(owner, checkpoint_id)


@router.get(
    "/{checkpoint_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Server-sent events"},
        **documented(401, 404, 422, 429, 500),
    },
)
async def events(
    checkpoint_id: CheckpointId,
    gateway: GatewayHere,
    owner: Owner,
    last_event_id: Annotated[int, Header(ge=0, lt=1 << 31)] = 0,
) -> StreamingResponse:
    """Its steps as they happen, until it ends; ``Last-Event-ID`` goes on after a lost connection."""
    first = await gateway.jobs.events(owner, checkpoint_id, last_event_id, 0)  # a 404 comes before the stream begins
    stream = _stream(gateway.jobs, owner, checkpoint_id, first, last_event_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _stream(jobs: JobsProxy, owner: str, checkpoint_id: str, news: list[Event], seen: int) -> AsyncIterator[str]:
    while True:
        for event in news:
            seen = event.seq
            yield f"id: {event.seq}\nevent: {event.state}\ndata: {event.model_dump_json()}\n\n"
        if news and news[-1].state in ENDED:
            return
        # Asked before the news are: what ends in between is among them.
        over = (await jobs.get(owner, checkpoint_id)).state not in ACTIVE
        news = await jobs.events(owner, checkpoint_id, seen, 0 if over else EVENT_WAIT)
        if not news:
            if over:
                return  # it had ended before the caller came back
            yield ": still there\n\n"


@router.get(
    "/{checkpoint_id}/files/{name}",
    response_class=FileResponse,
    responses={
        200: {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The file",
        },
        206: {"description": "Part of the file"},
        416: {"description": "No such range"},
        **documented(400, 401, 404, 409, 410, 422, 429, 500),
    },
)
async def file(
    checkpoint_id: CheckpointId, name: Annotated[str, Path(max_length=255)], gateway: GatewayHere, owner: Owner
) -> FileResponse:
    """One file of a finished checkpoint; ``Range`` goes on after a lost connection."""
    found = await gateway.jobs.get(owner, checkpoint_id)
    return FileResponse(gateway.file(found, name), media_type="application/octet-stream", filename=name)
