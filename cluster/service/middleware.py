"""What every call passes first: an id, limits on its body, a line in the log, a count among the metrics."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service.config import LimitsConfig
from cluster.service.problems import problem

LOG = logging.getLogger("unicuco.access")
CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
Observe = Callable[[str, int, float], None]
"""Told the route, status and seconds of every call."""
ANSWERS = "/v1/answers"


class CallMiddleware:
    """Gives each call an id (the caller's ``X-Request-ID``, where it is one), refuses what no route should see.

    Calls for answers beyond ``calls_at_once`` are refused here, before their body is read: a refusal that went through
    keys, routes and checks would cost nearly what an answer does, and twice the load would leave no time for answers.
    """

    def __init__(self, app: ASGIApp, limits: LimitsConfig, observe: Observe | None = None) -> None:
        self._app, self._limits, self._observe = app, limits, observe
        self._answering = 0
        self._shed = Shed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        scope["call_id"] = given if CALL_ID.fullmatch(given) else secrets.token_hex(8)
        # A service may lie under a prefix.
        limited = scope["path"].removeprefix(scope.get("root_path", "")) == ANSWERS
        if limited and self._full():
            await self._refuse(request, receive, send)
        else:
            await self._call(request, receive, send, limited)

    def _full(self) -> bool:
        return self._answering >= self._limits.calls_at_once

    async def _refuse(self, request: Request, receive: Receive, send: Send) -> None:
        await _overloaded(request, _marks(request.scope))(request.scope, receive, send)
        self._shed.count()
        if self._observe:
            self._observe(ANSWERS, 503, 0.0)

    async def _call(self, request: Request, receive: Receive, send: Send, limited: bool) -> None:
        scope = request.scope
        began, status = time.perf_counter(), 0

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(name.encode(), value.encode()) for name, value in _marks(scope).items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            body = await self._body(request, receive)
            if body is None:
                detail = f"The body is larger than {self._limits.body_bytes:,} bytes."
                await problem(request, 413, "too_large", detail)(scope, receive, answering)
            elif body and not _is_json(request):
                detail = "Send a body of content type application/json."
                await problem(request, 415, "wrong_content_type", detail)(scope, receive, answering)
            elif limited and self._full():  # others came while the body did
                await _overloaded(request, {})(scope, receive, answering)
            else:
                # Counted from here on: who sends slowly, perhaps without a key, keeps nobody else out.
                self._answering += limited
                try:
                    await self._app(scope, _again(body, receive), answering)
                finally:
                    self._answering -= limited
        finally:
            self._report(scope, status, time.perf_counter() - began)

    async def _body(self, request: Request, receive: Receive) -> bytes | None:
        """The whole body; None where it is too large. Bodies are small here, and half a body is no call."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_bytes:
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


class Shed:
    """Refused calls in the log: their number, about once a second, or the log would be what takes the time."""

    def __init__(self) -> None:
        self._calls, self._since = 0, time.monotonic()

    def count(self) -> None:
        self._calls += 1
        now = time.monotonic()
        if now - self._since >= 1:
            LOG.warning(json.dumps({"route": ANSWERS, "status": 503, "calls": self._calls}))
            self._calls, self._since = 0, now


def _overloaded(request: Request, headers: dict[str, str]) -> JSONResponse:
    detail = "More calls than this service can answer; come back soon."
    return problem(request, 503, "overloaded", detail, headers={"Retry-After": "1", **headers})


def _marks(scope: Scope) -> dict[str, str]:
    """Headers of every reply."""
    return {"x-request-id": scope["call_id"], "x-content-type-options": "nosniff"}


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
