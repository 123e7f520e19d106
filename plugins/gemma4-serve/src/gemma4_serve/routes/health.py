"""``/health`` and ``/metrics``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gemma4_serve.errors import busy
from gemma4_serve.server import Server


def routes(server: Server) -> list[BaseRoute]:
    """The routes for whoever watches the server."""

    async def health(request: Request) -> Response:
        if not server.engine.ready:
            raise busy("the server is not ready")
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        text, kind = server.metrics.text()
        return Response(text, media_type=kind)

    return [Route("/health", health), Route("/v1/health", health), Route("/metrics", metrics)]
