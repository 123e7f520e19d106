"""Finding, loading and choosing plugins. ``registry`` is the one that everything uses; it loads nothing until asked.

Names are imported on first use: the list of commands needs ``command_entries`` and not the registry.
"""

from __future__ import annotations

from gemma4_core.lazy_names import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gemma4_core.plugins.entrypoints import CommandEntry, command_entries
    from gemma4_core.plugins.manager import LoadedPlugin, PluginManager
    from gemma4_core.plugins.origin import Origin
    from gemma4_core.plugins.selection import Registry, Row, registry
    from gemma4_core.plugins.views import View

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

__getattr__, __dir__ = lazy_names(__name__, {
    "entrypoints": "CommandEntry command_entries",
    "manager": "LoadedPlugin PluginManager",
    "origin": "Origin",
    "selection": "Registry Row registry",
    "views": "View",
})  # fmt: skip
