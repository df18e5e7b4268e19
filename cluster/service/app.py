"""The HTTP application: routes under ``/v1``, health, the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse

from cluster.service import answer_routes, checkpoint_routes
from cluster.service.gateway import Gateway
from cluster.service.middleware import CallMiddleware, Observe
from cluster.service.problems import add_handlers
from unicuco import __version__
from unicuco.wire import Problem

PAGE = Path(__file__).parent / "page"


def create_app(gateway: Gateway, observe: Observe | None = None) -> FastAPI:
    """The application in front of ``gateway``; knows no Ray."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        yield
        await gateway.stop()

    app = FastAPI(
        title="UniCuCo",
        version=__version__,
        description="Customised compression of large language models: answers and checkpoints.",
        lifespan=lifespan,
        docs_url=None,  # they load their scripts from elsewhere
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.gateway = gateway
    app.add_middleware(CallMiddleware, limits=gateway.config.limits, observe=observe)
    add_handlers(app)
    app.include_router(answer_routes.router)
    app.include_router(checkpoint_routes.router)
    for name in ("live", "ready"):  # a replica listens once its policies are loaded: both are the same
        app.add_api_route(f"/health/{name}", _healthy, methods=["GET"], include_in_schema=False)
    for path in sorted(PAGE.iterdir()):  # route by route: a mount at "/" would answer for wrong methods elsewhere
        name = "" if path.name == "index.html" else path.name
        app.add_api_route(
            f"/{name}", _file(path), methods=["GET"], include_in_schema=False, response_class=FileResponse
        )
    _describe(app)
    return app


def _file(path: Path) -> Callable[[Request], Awaitable[FileResponse]]:
    async def send(request: Request) -> FileResponse:
        return FileResponse(path)

    return send


async def _healthy() -> dict[str, str]:
    return {"status": "ok"}


def _describe(app: FastAPI) -> None:
    """OpenAPI says how to send a key, and what a problem is."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        parts = schema.setdefault("components", {})
        parts.setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer"}
        parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; ours are problems
            parts["schemas"].pop(unused, None)
        schema["security"] = [{"key": []}, {}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
