"""``/v1/messages`` and ``count_tokens``: Anthropic's interface."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gemma4_serve.dialects.messages_input import message_request
from gemma4_serve.dialects.messages_output import MessageObject
from gemma4_serve.outcome import Outcomes
from gemma4_serve.server import Server
from gemma4_serve.streaming import answered_while_there


def routes(server: Server) -> list[BaseRoute]:
    """The routes of messages."""

    async def messages(request: Request) -> ASGIApp:
        asked, streams = await message_request(await server.body(request), server.card, server.settings)
        stream = await answered_while_there(request, server.engine.submit(asked))
        outcomes = Outcomes(stream, server.engine, server.settings, 1)
        message = MessageObject(asked, server.card, outcomes)
        return await server.reply(request, [outcomes], message.events() if streams else None, message.collect)

    async def count(request: Request) -> Response:
        asked, _ = await message_request(await server.body(request), server.card, server.settings, counting=True)
        return JSONResponse({"input_tokens": len(await server.engine.prompt_ids(asked))})

    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count, methods=["POST"]),
    ]
