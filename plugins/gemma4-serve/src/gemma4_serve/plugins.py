"""The entry-point group ``gemma4.serve``: pages, and engine clients other than the one in this process.

The entry point's value is a ``ServePlugin``, or a module or object that has one as ``plugin``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from gemma4_core import PluginError
from gemma4_serve.logs import log

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from gemma4_serve.engine.contract import EngineClient
    from gemma4_serve.settings import Settings

GROUP = "gemma4.serve"


@dataclass(frozen=True)
class Page:
    """Static pages. They need no key: what they ask of the server does."""

    path: str
    """Where they are mounted, such as ``/``."""
    routes: Callable[[], Sequence[BaseRoute]]
    """Their routes below ``path``."""


@dataclass(frozen=True)
class ServePlugin:
    """What a package adds to the server."""

    name: str
    summary: str
    pages: tuple[Page, ...] = ()
    engine: Callable[[Settings, Sequence[str]], EngineClient] | None = None
    """Makes an engine client for ``gemma4 serve --engine NAME``, given the settings and what was typed after ``--``.
    Raises a Gemma4Error where it cannot."""


def serve_plugins() -> list[ServePlugin]:
    """What installed packages add, but for those that ``GEMMA4_DISABLE_PLUGINS`` names. One that fails is logged."""
    blocked = {name.strip().casefold() for name in os.environ.get("GEMMA4_DISABLE_PLUGINS", "").split(",")}
    found = []
    for entry_point in entry_points(group=GROUP):
        if entry_point.name.casefold() in blocked:
            continue
        try:
            found.append(_loaded(entry_point))
        except Exception as error:
            log.failure(f"loading the plugin {entry_point.name}", error)
    return found


def _loaded(entry_point: EntryPoint) -> ServePlugin:
    value: Any = entry_point.load()
    plugin = value if isinstance(value, ServePlugin) else getattr(value, "plugin", None)
    if not isinstance(plugin, ServePlugin):
        raise PluginError(f"{entry_point.name}: a {GROUP} entry point names a ServePlugin, or what has one as plugin")
    return plugin


def engine_client(name: str, settings: Settings, arguments: Sequence[str]) -> EngineClient:
    """The engine client of an installed package. Raises PluginError where no package brings one of this name."""
    brought = {plugin.name.casefold(): plugin.engine for plugin in serve_plugins() if plugin.engine is not None}
    make = brought.get(name.casefold())
    if make is None:
        raise PluginError(f"--engine {name}: no installed package brings it; there are: "
                          f"{', '.join(['local', *sorted(brought)])}")
    return make(settings, arguments)
