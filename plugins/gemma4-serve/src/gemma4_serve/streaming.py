"""Answers piece by piece: server-sent events, and work that ends when its reader goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gemma4_serve.errors import ApiError, body_of, broken
from gemma4_serve.logs import log

T = TypeVar("T")
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class Gone(Exception):
    """The reader went away."""


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event with JSON as its data."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class EventStream:
    """A response that sends pieces as they come.

    Args:
        pieces: what is sent, none of it empty.
        stall_seconds: how long a reader may take none.
        end: called when it is over, whole or not.
    """

    def __init__(self, pieces: AsyncIterator[bytes], stall_seconds: float, end: Callable[[], Any]) -> None:
        self.pieces, self.stall_seconds, self.end = pieces, stall_seconds, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
                   "x-accel-buffering": "no"}  # fmt: skip
        start = [(name.encode(), value.encode()) for name, value in headers.items()]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": start})
            await while_there(receive, self._send(scope, send))
        except (Gone, TimeoutError):
            pass  # nobody reads any more
        finally:
            self.end()

    async def _send(self, scope: Scope, send: Send) -> None:
        try:
            async for piece in self.pieces:
                await self._one(send, piece, True)
        except TimeoutError:
            raise
        except ApiError as error:
            await self._one(send, self._error(error, scope), True)
        except Exception as error:
            log.failure("a stream", error)
            await self._one(send, self._error(broken(), scope), True)
        await self._one(send, b"", False)

    async def _one(self, send: Send, piece: bytes, more: bool) -> None:
        message = {"type": "http.response.body", "body": piece, "more_body": more}
        await asyncio.wait_for(send(message), self.stall_seconds)

    @staticmethod
    def _error(error: ApiError, scope: Scope) -> bytes:
        body = body_of(error, scope["path"])
        return event(body, "error" if "type" in body else None)


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is ended where the reader goes away. Raises Gone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                await asyncio.gather(one, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answered_while_there(request: Request, work: Awaitable[T]) -> T:
    """The result of some work for a request whose body has been read. Raises Gone."""

    async def run() -> T:
        return await work

    return await while_there(request.receive, run())
