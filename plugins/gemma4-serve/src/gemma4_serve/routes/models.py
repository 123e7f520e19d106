"""``/v1/models``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gemma4_serve.errors import ApiError
from gemma4_serve.server import Server


def routes(server: Server) -> list[BaseRoute]:
    """The routes that tell what is served."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": objects(server)})

    async def model(request: Request) -> Response:
        found = next((one for one in objects(server) if one["id"] == request.path_params["id"]), None)
        if found is None:
            raise ApiError(404, "there is no such model; /v1/models lists those that there are", "model_not_found",
                           "model")
        return JSONResponse(found)

    return [
        Route("/v1/models", models), Route("/models", models), Route("/v1/models/{id:path}", model),
    ]


def objects(server: Server) -> list[dict[str, Any]]:
    """The model and its adapters, each a model of its own."""
    card = server.card
    same = {"object": "model", "created": card.created, "owned_by": "tinygrad-gemma4", "max_model_len": card.context,
            "input_modalities": ["text", *card.modalities], "output_modalities": ["text"]}  # fmt: skip
    names = [card.name, *(f"{card.name}:{name}" for name in card.adapters)]
    return [{"id": name, **same, "root": card.name, "parent": None if name == card.name else card.name}
            for name in names]
