"""Finding, loading and choosing plugins. ``registry`` is the one that everything uses; it loads nothing until asked."""

from __future__ import annotations

from gemma4_core.plugins.entrypoints import CommandEntry, command_entries
from gemma4_core.plugins.manager import LoadedPlugin, PluginManager
from gemma4_core.plugins.origin import Origin
from gemma4_core.plugins.selection import Registry, Row
from gemma4_core.plugins.views import View

registry = Registry(PluginManager())

__all__ = [
    "CommandEntry",
    "LoadedPlugin",
    "Origin",
    "PluginManager",
    "Registry",
    "Row",
    "View",
    "command_entries",
    "registry",
]
