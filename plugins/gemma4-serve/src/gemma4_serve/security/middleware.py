"""One check before every route: size of headers, host, origin, key. Also a line in the log for each request."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemma4_serve.errors import ApiError, body_of, broken
from gemma4_serve.logs import log
from gemma4_serve.security.hosts import host_allowed, listed, origin_allowed
from gemma4_serve.security.keys import key_allowed
from gemma4_serve.settings import Settings

METHODS = "GET, POST, DELETE, OPTIONS"
OPEN = ("/health", "/v1/health")
"""Routes that need no key."""


class Guard:
    """Lets through what may be answered.

    Args:
        app: the routes.
        settings: hosts, origins and keys.
        routes: those of the interfaces.
        pages: those of static pages, which need no key.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, routes: Sequence[BaseRoute], pages: Sequence[BaseRoute]
    ) -> None:
        self.app, self.settings, self.routes, self.pages = app, settings, routes, pages
        self.open = {*OPEN, *(("/metrics",) if settings.public_metrics else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = Exchange(scope, send, self.settings)
        try:
            error = self.refusal(scope, exchange)
            if error is not None:
                await exchange.refuse(error)
            elif scope["method"] == "OPTIONS":
                await exchange.preflight()
            else:
                await self.app(scope, receive, exchange.send)
        except Exception as fault:
            log.failure(exchange.route, fault)
            if not exchange.status:
                await exchange.refuse(broken())
        finally:
            exchange.tell()

    def refusal(self, scope: Scope, exchange: Exchange) -> ApiError | None:
        """Why a request is not answered, if it is not."""
        settings, headers = self.settings, exchange.headers
        size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope.get("raw_path") or b"")
        if size > settings.limits.header_bytes:
            return ApiError(431, f"headers of more than {settings.limits.header_bytes >> 10} kB are not read")
        if not host_allowed(headers.get("host"), settings):
            return ApiError(403, "this Host is not served here; start the server with --allow-host NAME")
        if exchange.preflights:
            return None  # it does nothing, and says who may ask
        origin = headers.get("origin")
        if origin is not None and not origin_allowed(origin, headers.get("host"), settings):
            return ApiError(403, "pages of this Origin may not ask; start the server with --cors-origins")
        if scope["path"] in self.open or self.is_page(scope):
            return None
        if not key_allowed(headers, settings):
            return ApiError(401, "give a valid API key as a bearer token or in x-api-key", "invalid_api_key")
        return None

    def is_page(self, scope: Scope) -> bool:
        """Whether a request is for a static page. Routes of the interfaces are none, wherever a page is mounted."""
        if scope["method"] not in ("GET", "HEAD") or any(matches(route, scope) for route in self.routes):
            return False
        return any(matches(route, scope) for route in self.pages)


def matches(route: BaseRoute, scope: Scope) -> bool:
    """Whether a route, or one below it, serves a path by whatever method."""
    found, inside = route.matches(scope)
    if found is Match.NONE or not isinstance(route, Mount):
        return found is not Match.NONE
    return any(matches(one, {**scope, **inside}) for one in route.routes)


class Exchange:
    """One request and what was sent in answer to it."""

    def __init__(self, scope: Scope, send: Send, settings: Settings) -> None:
        self.scope, self._send, self.settings = scope, send, settings
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.status = 0
        self.began = time.perf_counter()
        self.id = f"req_{secrets.token_hex(12)}"
        self.told: dict[str, Any] = {}
        scope.setdefault("state", {})["told"] = self.told
        """Figures that a route adds to the log's line."""

    @property
    def preflights(self) -> bool:
        """Whether a browser asks what it may do."""
        return self.scope["method"] == "OPTIONS"

    @property
    def route(self) -> str:
        """The route that answered, as it was declared: what was typed does not get into the log."""
        return str(getattr(self.scope.get("route"), "path", "")) or "none"

    async def send(self, message: Message) -> None:
        """Send a message, the start of an answer with what all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._common()]}
        await self._send(message)

    def _common(self) -> list[tuple[bytes, bytes]]:
        found = {"x-request-id": self.id, "x-content-type-options": "nosniff"}
        origin = self.headers.get("origin")
        if origin is not None and listed(origin, self.settings):
            found |= {"Access-Control-Allow-Origin": origin, "vary": "Origin"}
        return [(name.encode(), value.encode("latin-1")) for name, value in found.items()]

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error."""
        body = json.dumps(body_of(error, self.scope["path"])).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close",
                   **error.headers}  # fmt: skip
        await self._answer(error.status, headers, body)

    async def preflight(self) -> None:
        """Say what a page may do; one that may not ask gets no leave."""
        headers = {"content-length": "0", "allow": METHODS}
        if (origin := self.headers.get("origin")) is not None and listed(origin, self.settings):
            headers |= {"Access-Control-Allow-Methods": METHODS, "Access-Control-Allow-Headers": "*",
                        "Access-Control-Max-Age": "600"}  # fmt: skip
        await self._answer(200, headers, b"")

    async def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})

    def tell(self) -> None:
        """Write the log's line."""
        more: dict[str, Any] = dict(self.told)
        log.write("request", id=self.id, method=self.scope["method"] if len(self.scope["method"]) < 10 else "",
                  route=self.route, status=self.status or None,
                  seconds=round(time.perf_counter() - self.began, 4), **more)  # fmt: skip
