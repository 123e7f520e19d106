"""``/v1/chat/completions``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gemma4_serve.dialects.chat import Completion, chat_request
from gemma4_serve.outcome import Outcomes
from gemma4_serve.server import Server
from gemma4_serve.streaming import answered_while_there

PATHS = ("/v1/chat/completions", "/chat/completions")


def routes(server: Server) -> list[BaseRoute]:
    """The routes of chat completions."""

    async def chat(request: Request) -> ASGIApp:
        asked, form = await chat_request(await server.body(request), server.card, server.settings)
        stream = await answered_while_there(request, server.engine.submit(asked))
        count = asked.options.get("n", 1)
        outcomes = Outcomes(stream, server.engine, server.settings, count, form.logprobs)
        completion = Completion(asked, form, server.card, outcomes)
        chunks = completion.chunks() if form.stream else None
        return await server.reply(request, [outcomes], chunks, completion.finished)

    async def count(request: Request) -> Response:
        asked, _ = await chat_request(await server.body(request), server.card, server.settings)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(
            await server.engine.prompt_ids(asked)
        )})

    return [
        *(Route(path, chat, methods=["POST"]) for path in PATHS),
        *(Route(f"{path}/input_tokens", count, methods=["POST"]) for path in PATHS),
    ]
