"""``Server``: what every route needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from gemma4_serve.engine.contract import EngineClient, ModelCard
from gemma4_serve.metrics import Metrics
from gemma4_serve.outcome import Outcomes, figures
from gemma4_serve.security.bodies import read_object
from gemma4_serve.settings import Settings
from gemma4_serve.streaming import EventStream, answered_while_there


@dataclass
class Server:
    """The engine, the settings, and what is measured."""

    engine: EngineClient
    settings: Settings
    metrics: Metrics

    @property
    def card(self) -> ModelCard:
        """The model that is served."""
        return self.engine.card

    async def body(self, request: Request) -> dict[str, Any]:
        """The body of a request. Raises ApiError."""
        return await read_object(request, self.settings.limits)

    async def reply(
        self, request: Request, outcomes: Sequence[Outcomes], pieces: AsyncIterator[bytes] | None,
        whole: Callable[[], Awaitable[dict[str, Any]]],
    ) -> ASGIApp:
        """The response to a request whose answers are on their way: a stream of ``pieces`` where there are any, else
        the object that ``whole`` waits for. Raises ApiError where an answer failed, Gone where nobody waits for it."""
        if pieces is not None:
            return EventStream(pieces, self.settings.limits.stall_seconds, lambda: self.end(request, *outcomes))
        try:
            return JSONResponse(await answered_while_there(request, whole()))
        finally:
            self.end(request, *outcomes)

    def end(self, request: Request, *outcomes: Outcomes) -> None:
        """A request has ended, whole or not: give up what is left of its answers, measure, log."""
        for each in outcomes:
            each.stream.cancel()
            self.metrics.ended(each)
        request.state.told.update(figures(outcomes))
