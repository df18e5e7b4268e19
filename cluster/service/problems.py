"""Errors as callers see them: RFC 9457 problem details, one sentence each, never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from unicuco.errors import UniCuCoError
from unicuco.wire import Problem

LOG = logging.getLogger("unicuco.service")
MEDIA_TYPE = "application/problem+json"
_WORDS = {
    400: "bad_request",
    401: "no_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "wrong_content_type",
    422: "invalid",
    429: "too_many_calls",
    503: "overloaded",
}


class ProblemError(UniCuCoError):
    """Something the caller is told: a status, a word for programs, a sentence for people."""

    def __init__(
        self, status: int, code: str, detail: str, retry_after: float | None = None, errors: list[Any] | None = None
    ) -> None:
        super().__init__(status, code, detail, retry_after, errors)  # all of them: it travels between processes
        self.status, self.code, self.detail = status, code, detail
        self.retry_after, self.errors = retry_after, errors

    def __str__(self) -> str:
        return self.detail


def problem(
    request: Request, status: int, code: str, detail: str, errors: Any = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        instance=str(request.scope.get("call_id", "")),
        errors=errors,
    )
    return JSONResponse(body.model_dump(exclude_none=True), status, headers=headers, media_type=MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Every way out of ``app`` that is not a reply."""

    @app.exception_handler(ProblemError)
    async def _own(request: Request, error: ProblemError) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(error.retry_after)))
        return problem(request, error.status, error.code, error.detail, error.errors, headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": ".".join(str(part) for part in item["loc"] if not str(part).startswith("<")), "what": item["msg"]}
            for item in error.errors()[:20]
        ]
        detail = "; ".join(f"{item['where']}: {item['what'].removeprefix('Value error, ')}" for item in errors[:3])
        malformed = any(item["type"] == "json_invalid" for item in error.errors())
        status, code = (400, "not_json") if malformed else (422, "invalid")
        return problem(request, status, code, f"{detail}.", errors)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        code, headers = _WORDS.get(error.status_code, "error"), error.headers
        if error.status_code == 405:  # Starlette names the methods of the first route with this path alone
            headers = {"Allow": ", ".join(_methods(request))}
        return problem(request, error.status_code, code, f"{error.detail}.", headers=headers)

    @app.exception_handler(UniCuCoError)
    async def _known(request: Request, error: UniCuCoError) -> JSONResponse:
        return problem(request, 422, "invalid", str(error))

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        LOG.exception("call failed", extra={"call_id": request.scope.get("call_id", "")})
        return problem(request, 500, "internal", "Something went wrong here; the service's log has the details.")


def _methods(request: Request) -> list[str]:
    """The documented methods of the call's path."""
    found = request.app.openapi()["paths"].items()
    return [m.upper() for path, methods in found if compile_path(path)[0].match(request.url.path) for m in methods]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems a route can answer with."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }
