"""What every call passes first: an id, limits on its body, a line in the log, a count among the metrics."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service.problems import problem

LOG = logging.getLogger("unicuco.access")
CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
Observe = Callable[[str, int, float], None]
"""Told the route, status and seconds of every call."""


class CallMiddleware:
    """Gives each call an id (the caller's ``X-Request-ID``, where it is one), refuses what no route should see."""

    def __init__(self, app: ASGIApp, body_bytes: int, observe: Observe | None = None) -> None:
        self._app, self._limit, self._observe = app, body_bytes, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        scope["call_id"] = given if CALL_ID.fullmatch(given) else secrets.token_hex(8)
        began, status = time.perf_counter(), 0

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", scope["call_id"].encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            body = await self._body(request, receive)
            if body is None:
                detail = f"The body is larger than {self._limit:,} bytes."
                await problem(request, 413, "too_large", detail)(scope, receive, answering)
            elif body and not _is_json(request):
                detail = "Send a body of content type application/json."
                await problem(request, 415, "wrong_content_type", detail)(scope, receive, answering)
            else:
                await self._app(scope, _again(body, receive), answering)
        finally:
            self._report(scope, status, time.perf_counter() - began)

    async def _body(self, request: Request, receive: Receive) -> bytes | None:
        """The whole body; None where it is too large. Bodies are small here, and half a body is no call."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limit:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")  # not the path: that is whatever a caller sends
        if self._observe:
            self._observe(route, status, seconds)
        line = {
            "call": scope["call_id"],
            "key": scope.get("owner", ""),
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        LOG.info(json.dumps(line))


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands out ``body`` once, then whatever comes: a caller that goes away."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
