"""Loading plugins one by one, so that a broken one is recorded and breaks nothing else."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pluggy

from gemma4_core import hookspecs
from gemma4_core.contracts import KINDS, Description
from gemma4_core.errors import PluginError
from gemma4_core.plugins.checks import checked
from gemma4_core.plugins.entrypoints import COMMAND_GROUP, DISABLE, GROUP, Found, disabled, discover
from gemma4_core.plugins.origin import Origin, describe, nearest, one_line

HOOKS = {hook: kind for kind, (hook, _) in KINDS.items()}


@dataclass
class LoadedPlugin:
    """The outcome of loading one entry point."""

    origin: Origin
    status: str = "loaded"
    """``loaded``, ``blocked`` or ``failed`` (also where only one of its hooks failed)."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    descriptions: list[tuple[str, Description]] = field(default_factory=list)
    """Kind and description of everything that its hooks returned."""
    package: str | None = None
    """The top-level package that its entry point names; None for a plugin put in by hand."""

    def fail(self, error: BaseException, where: str = "") -> None:
        self.status = "failed"
        self.errors.append(one_line(f"{where}: {describe(error)}" if where else describe(error)))
        if os.environ.get("GEMMA4_DEBUG") == "1":
            traceback.print_exception(error, file=sys.stderr)


class PluginManager:
    """Loads plugins once, when they are first needed.

    ``plugins`` are objects by name, in addition to the installed ones or (``entry_points=False``) instead of them.
    """

    def __init__(self, plugins: Mapping[str, object] | None = None, entry_points: bool = True) -> None:
        self._by_hand: dict[str, object] = dict(plugins or {})
        self._entry_points = entry_points
        self._lock = threading.RLock()
        self._loading = False
        self._pluggy = self._fresh()
        self._loaded: list[LoadedPlugin] | None = None
        self.warnings: list[str] = []
        """Warnings that concern no single plugin."""

    def plugins(self) -> list[LoadedPlugin]:
        """The outcome for every plugin; loads them first where that has not happened.

        Raises PluginError where a plugin uses the registry while it is being loaded.
        """
        with self._lock:
            if self._loading:
                raise PluginError("the plugin registry was used while plugins were being loaded; use it later")
            if self._loaded is None:
                self._loading = True
                try:
                    self._loaded = self._load()
                finally:
                    self._loading = False
            return self._loaded

    def register(self, plugin: object, name: str) -> LoadedPlugin:
        """Add a plugin by hand. Raises PluginError where it fails; nothing of it stays registered then."""
        with self._lock:
            loaded = self.plugins()
            if name in self._by_hand:
                raise PluginError(f"a plugin '{one_line(name, 100)}' is already registered; unregister it first")
            record = LoadedPlugin(Origin(name))
            self._collect(record, plugin)
            if record.status == "failed":
                self._undo(plugin)
                raise PluginError(f"plugin '{one_line(name, 100)}': {'; '.join(record.errors)}")
            self._by_hand[name] = plugin
            loaded.append(record)
            return record

    def unregister(self, name: str) -> None:
        """Remove a plugin that was added by hand. Raises PluginError for an unknown name."""
        with self._lock:
            if name not in self._by_hand:
                raise PluginError(f"no plugin '{one_line(name, 100)}' was registered by hand")
            loaded = self.plugins()
            self._undo(self._by_hand.pop(name))
            loaded[:] = [p for p in loaded if p.origin != Origin(name)]

    def reload(self) -> None:
        """Forget everything that was loaded; entry points are read again when next asked. Modules stay imported."""
        with self._lock:
            importlib.invalidate_caches()
            self._pluggy, self._loaded, self.warnings = self._fresh(), None, []

    @staticmethod
    def _fresh() -> pluggy.PluginManager:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        return manager

    def _load(self) -> list[LoadedPlugin]:
        loaded: list[LoadedPlugin] = []
        blocked = disabled()
        names = set()
        for found in discover(GROUP) if self._entry_points else []:
            record = LoadedPlugin(found.origin)
            if found.entry_point is not None:
                record.package = found.entry_point.module.split(".")[0]
            loaded.append(record)
            names.add(found.origin.entry_point.casefold())
            if found.origin.entry_point.casefold() in blocked:
                record.status = "blocked"
            elif found.entry_point is None:
                record.status = "failed"
                record.errors.append(found.error or "unreadable")
            else:
                self._load_entry_point(record, found)
        for name, plugin in self._by_hand.items():
            record = LoadedPlugin(Origin(name))
            loaded.append(record)
            self._collect(record, plugin)
        if self._entry_points:
            self._warn_of_unknown_blocks(blocked, names)
        return loaded

    def _warn_of_unknown_blocks(self, blocked: dict[str, str], names: set[str]) -> None:
        names = names | {found.origin.entry_point.casefold() for found in discover(COMMAND_GROUP)}
        for key, name in blocked.items():
            if key not in names:
                close = nearest(key, names)
                self.warnings.append(f"{DISABLE} names '{one_line(name, 60)}', which is not installed{close}")

    def _load_entry_point(self, record: LoadedPlugin, found: Found) -> None:
        assert found.entry_point is not None
        try:
            with _stdout_to_stderr():
                plugin = found.entry_point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: a plugin must not end the program
            record.fail(error)
            return
        self._collect(record, plugin)

    def _collect(self, record: LoadedPlugin, plugin: object) -> None:
        """Register a plugin with pluggy, warn of misspelt hooks, and call its hooks."""
        if plugin is None or self._pluggy.is_registered(plugin):
            why = "None, a module or object is expected" if plugin is None else "already loaded under another name"
            record.fail(TypeError(f"the plugin is {why}"))
            return
        try:
            with _stdout_to_stderr():
                self._pluggy.register(plugin, f"{record.origin.distribution}:{record.origin.entry_point}:{id(record)}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            record.fail(error)
            self._undo(plugin)
            return
        for caller in self._pluggy.get_hookcallers(plugin) or []:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                if not caller.has_spec():
                    if not implementation.optionalhook:
                        close = nearest(caller.name, HOOKS)
                        record.warnings.append(f"unknown hook '{one_line(caller.name, 80)}'{close}")
                    continue
                self._call(record, caller.name, implementation)
        record.warnings += _unmarked(plugin)

    @staticmethod
    def _call(record: LoadedPlugin, hook: str, implementation: pluggy.HookImpl) -> None:
        try:
            if implementation.wrapper or implementation.hookwrapper:
                raise TypeError(f"{hook} cannot be wrapped: hooks of plugins are called one by one")
            with _stdout_to_stderr():
                result = implementation.function()
            kind = HOOKS[hook]
            record.descriptions += [(kind, item) for item in checked(kind, result)]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            record.fail(error, hook)

    def _undo(self, plugin: object) -> None:
        with contextlib.suppress(Exception):
            if self._pluggy.is_registered(plugin):
                self._pluggy.unregister(plugin)


def _unmarked(plugin: object) -> list[str]:
    """Warnings for functions named like a hook that lack ``@hookimpl`` and so are never called."""
    warnings = []
    for hook in HOOKS:
        function = inspect.getattr_static(plugin, hook, None)
        marks = (f"{hookspecs.PROJECT}_impl", f"{hookspecs.PROJECT}_spec")
        if function is not None and not any(hasattr(function, mark) for mark in marks):
            warnings.append(f"{hook} is not marked with @hookimpl and is ignored")
    return warnings


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what plugins print while they load: stdout is for the answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
