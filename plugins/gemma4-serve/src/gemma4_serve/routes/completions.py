"""``/v1/completions``, and llama.cpp's ``/completion``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gemma4_core import Part
from gemma4_serve.dialects.completions import (
    EVERY_KIND,
    CompletionForm,
    TextCompletion,
    completion_requests,
    llama_body,
    llama_object,
)
from gemma4_serve.engine.contract import Asked, Scored
from gemma4_serve.errors import wrong
from gemma4_serve.outcome import Outcomes
from gemma4_serve.server import Server
from gemma4_serve.streaming import PING, answered_while_there, event


async def begin(server: Server, asked: list[Asked], logprobs: bool) -> list[Outcomes]:
    """Submit the prompts of one request. Raises ApiError, with nothing left running."""
    found: list[Outcomes] = []
    try:
        for one in asked:
            stream = await server.engine.submit(one)
            count = one.options.get("n", 1)
            found.append(Outcomes(stream, server.engine, server.settings, count, logprobs, EVERY_KIND))
    except BaseException:
        for outcomes in found:
            outcomes.stream.cancel()
        raise
    return found


async def echoed(server: Server, asked: list[Asked], form: CompletionForm) -> list[Scored]:
    """The prompts as they are told again, scored where log-probabilities are wanted."""
    if not form.echo:
        return [Scored() for _ in asked]
    return [await server.engine.score(one, form.logprobs) for one in asked]


def routes(server: Server) -> list[BaseRoute]:
    """The routes of completions."""

    async def completions(request: Request) -> ASGIApp:
        asked, form = completion_requests(await server.body(request), server.card, server.settings)
        prompts = await answered_while_there(request, echoed(server, asked, form))
        outcomes = await answered_while_there(request, begin(server, asked, form.logprobs is not None))
        completion = TextCompletion(form, server.card, asked, outcomes, prompts)
        chunks = completion.chunks() if form.stream else None
        return await server.reply(request, outcomes, chunks, completion.finished)

    async def llama(request: Request) -> ASGIApp:
        asked, form = completion_requests(llama_body(await server.body(request)), server.card, server.settings)
        if len(asked) > 1 or asked[0].options.get("n", 1) > 1 or form.echo:
            raise wrong("this route answers one prompt once; use /v1/completions", "prompt")
        [outcomes] = await answered_while_there(request, begin(server, asked, False))
        chunks = llama_chunks(server, outcomes) if form.stream else None
        return await server.reply(request, [outcomes], chunks, lambda: llama_whole(server, outcomes))

    return [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/completion", llama, methods=["POST"]),
        Route("/completions", llama, methods=["POST"]),
    ]


async def llama_whole(server: Server, outcomes: Outcomes) -> dict[str, Any]:
    """The object in llama.cpp's form, once the answer has ended. Raises ApiError where it failed."""
    await outcomes.whole()
    return llama_object(outcomes, server.card, outcomes.each[0].text, True)


async def llama_chunks(server: Server, outcomes: Outcomes) -> AsyncIterator[bytes]:
    """Events in llama.cpp's form."""
    async for events in outcomes.stream.batches():
        text = ""
        for one in events:
            outcomes.take(one)
            text += one.text if isinstance(one, Part) else ""
        if text or not events:
            yield event(llama_object(outcomes, server.card, text, False)) if text else PING
    yield event(llama_object(outcomes, server.card, "", True))
