"""``/tokenize``, ``/detokenize`` and ``/apply-template``, in the forms of llama.cpp and of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gemma4_serve.dialects.asking import asked_of
from gemma4_serve.dialects.chat import chat_request
from gemma4_serve.dialects.completions import is_ids
from gemma4_serve.dialects.conversation import clean_messages
from gemma4_serve.engine.contract import Asked
from gemma4_serve.errors import wrong
from gemma4_serve.server import Server

LONGEST_TEXT = 4 << 20
"""Characters of a text to tokenize."""
MOST_IDS = 1 << 20


def routes(server: Server) -> list[BaseRoute]:
    """The routes about tokens."""

    async def tokenize(request: Request) -> Response:
        body = await server.body(request)
        ids = await ids_of(server, body)
        if "content" in body:
            return JSONResponse({"tokens": [piece(server, token) for token in ids] if body.get("with_pieces") else ids})
        found: dict[str, Any] = {"count": len(ids), "max_model_len": server.card.context, "tokens": ids}
        if body.get("return_token_strs"):
            found["token_strs"] = [server.engine.piece(token) for token in ids]
        return JSONResponse(found)

    async def detokenize(request: Request) -> Response:
        body = await server.body(request)
        ids: Any = body.get("tokens")
        if ids != [] and (not is_ids(ids) or len(ids) > MOST_IDS):
            raise wrong(f"tokens must be a list of at most {MOST_IDS} token ids", "tokens")
        text = await server.engine.detokenize(ids)
        return JSONResponse({"content": text, "prompt": text})

    async def template(request: Request) -> Response:
        body = await server.body(request)
        asked, _ = await chat_request(body, server.card, server.settings)
        return JSONResponse({"prompt": await server.engine.render(asked)})

    paths = ("/tokenize", tokenize), ("/detokenize", detokenize), ("/apply-template", template)
    return [Route(f"{start}{path}", route, methods=["POST"]) for path, route in paths for start in ("", "/v1")]


async def ids_of(server: Server, body: Mapping[str, Any]) -> list[int]:
    """The ids that a body asks for. Raises ApiError."""
    if body.get("messages") is not None:
        messages = await clean_messages(body["messages"], server.settings, server.card.modalities)
        asked, _ = asked_of(body, {"messages": messages}, server.card, server.settings)
        return await server.engine.prompt_ids(asked)
    text = body.get("content", body.get("prompt"))
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise wrong(f"give content (or prompt) as text of at most {LONGEST_TEXT} characters, or messages", "content")
    begin = body.get("add_special", False) if "content" in body else body.get("add_special_tokens", True)
    if begin and text:
        return await server.engine.prompt_ids(Asked("prompt", text))
    return await server.engine.tokenize(text, body.get("parse_special", True) is not False)


def piece(server: Server, token: int) -> dict[str, Any]:
    """An id with its text, or with its bytes where it is a part of a character."""
    text = server.engine.piece(token)
    return {"id": token, "piece": text}
