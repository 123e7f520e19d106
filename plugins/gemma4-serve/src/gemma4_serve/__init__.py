"""OpenAI's and Anthropic's HTTP interfaces for tinygrad-gemma4.

    from gemma4_core import load_pretrained
    from gemma4_serve import LocalEngine, Settings, create_app
    app = create_app(LocalEngine(load_pretrained("demo"), Settings()), Settings())

Packages add pages and engine clients through the entry-point group ``gemma4.serve``; see ``ServePlugin``.
"""

from __future__ import annotations

from gemma4_serve.app import create_app
from gemma4_serve.engine.contract import Asked, EngineClient, Event, ModelCard, Progress, Stream
from gemma4_serve.engine.local import LocalEngine
from gemma4_serve.errors import ApiError
from gemma4_serve.plugins import Page, ServePlugin
from gemma4_serve.settings import Limits, Settings

__all__ = [
    "ApiError",
    "Asked",
    "EngineClient",
    "Event",
    "Limits",
    "LocalEngine",
    "ModelCard",
    "Page",
    "Progress",
    "ServePlugin",
    "Settings",
    "Stream",
    "create_app",
]
