"""Bodies of requests, read within bounds."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from gemma4_core import InputError
from gemma4_core.openai import check_text, parsed
from gemma4_serve.errors import ApiError, wrong
from gemma4_serve.settings import Limits


def check_type(request: Request, wanted: str) -> None:
    """Raise ApiError for a body of another type: a page's form must not pass for one, and nothing is unpacked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != wanted:
        raise ApiError(415, f"the body must be of type {wanted} (Content-Type)")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not read")


def check_length(request: Request, limits: Limits) -> None:
    """Raise ApiError for a body that says it is too long."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > limits.body_bytes:
        raise too_large(limits)


def too_large(limits: Limits) -> ApiError:
    """The error for a body that is too long."""
    return ApiError(413, f"the body is larger than {limits.body_bytes >> 20} MiB")


async def read_bytes(request: Request, limits: Limits) -> bytes:
    """The body, counted while it is read. Raises ApiError."""
    check_length(request, limits)
    pieces, size = [], 0
    stream = request.stream()
    try:
        while True:
            piece = await asyncio.wait_for(anext(stream), limits.body_seconds)
            size += len(piece)
            if size > limits.body_bytes:
                raise too_large(limits)
            pieces.append(piece)
    except StopAsyncIteration:
        return b"".join(pieces)
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time") from None
    except ClientDisconnect:
        raise ApiError(400, "the connection was closed") from None


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError."""
    check_type(request, "application/json")
    data = await read_bytes(request, limits)
    try:
        found = parsed(data)
        check_text(found, data)
    except InputError as error:
        raise wrong(f"the body cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise wrong("the body must be a JSON object")
    return found
