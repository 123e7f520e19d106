"""``/v1/responses``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gemma4_serve.dialects.responses_input import response_request
from gemma4_serve.dialects.responses_output import ResponseObject
from gemma4_serve.outcome import Outcomes
from gemma4_serve.server import Server
from gemma4_serve.streaming import answered_while_there

PATHS = ("/v1/responses", "/responses")


def routes(server: Server) -> list[BaseRoute]:
    """The routes of responses. Nothing is held: a response cannot be asked for again."""

    async def respond(request: Request) -> ASGIApp:
        asked, form = await response_request(await server.body(request), server.card, server.settings)
        stream = await answered_while_there(request, server.engine.submit(asked))
        outcomes = Outcomes(stream, server.engine, server.settings, 1, form.logprobs)
        response = ResponseObject(asked, form, server.card, outcomes)
        events = response.events() if form.stream else None
        return await server.reply(request, [outcomes], events, response.collect)

    async def count(request: Request) -> Response:
        asked, _ = await response_request(await server.body(request), server.card, server.settings)
        ids = await server.engine.prompt_ids(asked)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(ids)})

    return [
        *(Route(path, respond, methods=["POST"]) for path in PATHS),
        *(Route(f"{path}/input_tokens", count, methods=["POST"]) for path in PATHS),
    ]
