"""``Server``: what every route needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from gemma4_serve.engine.contract import EngineClient, ModelCard
from gemma4_serve.metrics import Metrics
from gemma4_serve.outcome import Outcomes, figures
from gemma4_serve.security.bodies import read_object
from gemma4_serve.settings import Settings


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

    def end(self, request: Request, *outcomes: Outcomes) -> None:
        """A request has ended, whole or not: give up what is left of its answers, measure, log."""
        for each in outcomes:
            each.stream.cancel()
            self.metrics.ended(each)
        request.state.told.update(figures(outcomes))
