"""``/v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gemma4_serve.dialects.asking import adapter_of
from gemma4_serve.engine.contract import Asked
from gemma4_serve.errors import too_long, wrong
from gemma4_serve.server import Server
from gemma4_serve.settings import Settings
from gemma4_serve.streaming import answered_while_there

PATHS = ("/v1/embeddings", "/embeddings")


def routes(server: Server) -> list[BaseRoute]:
    """The route of embeddings."""

    async def embeddings(request: Request) -> Response:
        body = await server.body(request)
        adapter_of(body.get("model"), server.card)
        texts, as_base64 = texts_of(body, server.settings), encoding_of(body)
        tokens = 0
        for text in texts:
            ids = await server.engine.prompt_ids(Asked("prompt", text))
            if len(ids) > server.card.context:
                raise too_long(len(ids), server.card.context)
            tokens += len(ids)
        vectors = await answered_while_there(request, server.engine.embed(texts))
        if body.get("dimensions") not in (None, len(vectors[0])):
            raise wrong(f"dimensions: this model's vectors have {len(vectors[0])}", "dimensions")
        data = [{"object": "embedding", "index": number, "embedding": encoded(vector) if as_base64 else vector}
                for number, vector in enumerate(vectors)]  # fmt: skip
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": server.card.name, "usage": usage})

    return [Route(path, embeddings, methods=["POST"]) for path in PATHS]


def texts_of(body: Mapping[str, Any], settings: Settings) -> list[str]:
    """The texts of a body. Raises ApiError."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise wrong("input must be a text or a list of texts, none of them empty", "input")
    if len(texts) > settings.limits.prompts:
        raise wrong(f"input: at most {settings.limits.prompts} texts", "input")
    return texts


def encoding_of(body: Mapping[str, Any]) -> bool:
    """Whether vectors are wanted as base64. Raises ApiError."""
    wanted = body.get("encoding_format") or "float"
    if wanted not in ("float", "base64"):
        raise wrong("encoding_format must be float or base64", "encoding_format")
    return wanted == "base64"


def encoded(vector: list[float]) -> str:
    """A vector as base64 of little-endian fp32."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
