"""``create_app``: everything put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp

from gemma4_serve.engine.contract import EngineClient
from gemma4_serve.engine.local import LocalEngine
from gemma4_serve.errors import ApiError, body_of, broken
from gemma4_serve.metrics import Metrics
from gemma4_serve.plugins import Page
from gemma4_serve.routes import audio, chat, completions, embeddings, health, messages, models, responses, tokens
from gemma4_serve.security.middleware import Guard
from gemma4_serve.server import Server
from gemma4_serve.settings import Settings
from gemma4_serve.streaming import Gone

FAMILIES = (chat, completions, responses, messages, models, audio, embeddings, tokens, health)
MESSAGES = {404: "there is no such route", 405: "this route does not take this method"}


def create_app(engine: EngineClient, settings: Settings, pages: Sequence[Page] = ()) -> ASGIApp:
    """The server as an ASGI application. The engine is closed when the application ends.

    Args:
        engine: what answers.
        settings: hosts, keys and bounds.
        pages: static pages.
    """
    server = Server(engine, settings, Metrics(engine))
    if isinstance(engine, LocalEngine):
        engine.observe = server.metrics.token_gap
    routes: list[BaseRoute] = [route for family in FAMILIES for route in family.routes(server)]
    static: list[BaseRoute] = [Mount(page.path.rstrip("/"), routes=[*page.routes()]) for page in pages]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await engine.close()

    handlers: Any = {
        Exception: told_nothing, ApiError: told, HTTPException: told_by_starlette, Gone: gone, ClientDisconnect: gone,
    }  # fmt: skip
    app = Starlette(routes=[*routes, *static], exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Guard(app, settings, routes, static)


async def told(request: Request, error: ApiError) -> Response:
    """The answer to a request that has an error."""
    request.state.told["error"] = error.code or error.status
    return JSONResponse(body_of(error, request.url.path), error.status, error.headers)


async def told_nothing(request: Request, error: Exception) -> Response:
    """The answer where something of ours failed; the log has it."""
    return JSONResponse(body_of(broken(), request.url.path), 500)


async def told_by_starlette(request: Request, error: HTTPException) -> Response:
    """The answer to a request that no route takes."""
    known = ApiError(error.status_code, MESSAGES.get(error.status_code, "the request cannot be answered"))
    return JSONResponse(body_of(known, request.url.path), error.status_code, error.headers)


async def gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)
