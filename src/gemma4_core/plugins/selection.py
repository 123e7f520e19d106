"""The registry: every description that plugins yield, and the rules by which one is chosen."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gemma4_core.config import GemmaConfig, expected_text_tensors
from gemma4_core.contracts import (
    KINDS,
    CallbackBackend,
    CheckpointFormat,
    ConstraintBackend,
    Context,
    DeviceBackend,
    DrafterBackend,
    ModalityTower,
    ModelTransform,
    OptimizerBackend,
    TokenizerBackend,
)
from gemma4_core.errors import DeviceError, Gemma4Error, PluginError
from gemma4_core.plugins.entrypoints import DISABLE, command_entries
from gemma4_core.plugins.manager import LoadedPlugin, PluginManager
from gemma4_core.plugins.origin import describe, nearest, one_line
from gemma4_core.plugins.views import Chooser, Entry, UnknownPluginError, View

OPTIONS = {kind: f"--{kind}" for kind in KINDS}
OPTIONS |= {"transform": "transform", "drafter": "--draft", "constraint": "constraint"}
"""The option that chooses a plugin of each kind, as messages name it."""
TITLES = {
    "format": "checkpoint formats",
    "modality": "modalities",
    "tokenizer": "tokenizers",
    "device": "devices",
    "optimizer": "optimizers",
    "transform": "model transforms",
    "drafter": "drafters",
    "constraint": "constraints",
    "callback": "training callbacks",
}
MESSAGE_LIMIT = 480
VALUE_LIMIT = 120


@dataclass(frozen=True)
class Row:
    """A line of ``gemma4 plugins``. ``kind`` is None for an entry point that failed, is blocked or yields nothing."""

    name: str
    kind: str | None
    summary: str | None
    status: str
    distribution: str | None
    version: str | None
    error: str | None


class Registry:
    """Everything that plugins offer. It loads them on first use; ``reload()`` starts over."""

    def __init__(self, manager: PluginManager) -> None:
        self.manager = manager
        self.match_errors: dict[tuple[str, str], str] = {}
        """Exceptions inside ``matches``, by kind and name; such a plugin counts as not matching."""
        self._source: list[LoadedPlugin] | None = None
        self._entries: dict[str, list[Entry[Any]]] = {}
        self.formats: View[CheckpointFormat] = self._view("format")
        self.modalities: View[ModalityTower] = self._view("modality")
        self.tokenizers: View[TokenizerBackend] = self._view("tokenizer")
        self.devices: View[DeviceBackend] = self._view("device")
        self.optimizers: View[OptimizerBackend] = self._view("optimizer")
        self.transforms: View[ModelTransform] = self._view("transform")
        self.drafters: View[DrafterBackend] = self._view("drafter")
        self.constraints: View[ConstraintBackend] = self._view("constraint")
        self.callbacks: View[CallbackBackend] = self._view("callback")

    # ------------------------------------------------------------------------------------------------ choosing

    def select(self, kind: str, context: Context | None = None, name: str | None = None) -> Any:
        """The description to use: by name (any case), or (None or ``auto``) the best match for the context.

        Raises PluginError for an unknown, blocked, failed or doubly claimed name, for a tie between plugins of the
        highest priority, and where nothing matches; DeviceError where no device can be used.
        """
        if kind == "device":
            return self.select_device(name, context)
        if (wanted := _wanted(kind, name)) is not None:
            return self._by_name(kind, wanted)
        candidates = self._candidates(kind, context or Context())
        if not candidates:
            raise PluginError(self._no_match(kind, context or Context()))
        best = [entry for entry in candidates if entry.description.priority == candidates[0].description.priority]
        for entry in best:
            if entry.conflict is not None:
                raise PluginError(self._conflict(kind, entry))
        if len(best) > 1:
            who = " and ".join(f"'{entry.name}' ({entry.origin})" for entry in best)
            where = f" for {context.path}" if context is not None and context.path else ""
            raise PluginError(_clip(f"{who} match equally well{where}; choose one with {OPTIONS[kind]}"))
        return best[0].description

    def matching(
        self, kind: str, context: Context | None = None, values: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Every description that matches, highest priority first, then by name.

        A name that two plugins claim raises PluginError, except a transform that neither an option in ``values``
        nor a file in the folder asks for: that one is left out. Towers that match read their part of the config, and
        raise ConfigError where it is wrong.
        """
        context = context or Context()
        chosen = []
        for entry in self._candidates(kind, context):
            if entry.conflict is None:
                chosen.append(entry.description)
            elif kind != "transform" or entry.description.wanted(values or {}, context):
                raise PluginError(self._conflict(kind, entry))
        if kind == "modality" and context.config is not None:
            for tower in chosen:
                check_part(tower, context.config)
        return chosen

    def towers_of(self, config: GemmaConfig) -> list[ModalityTower]:
        """The towers that a config declares: those whose media stand before the text first, those that borrow another's
        tower last. Raises ConfigError and PluginError as ``matching``."""
        found = self.matching("modality", Context(config=config, raw_config=config.raw))
        return sorted(found, key=lambda tower: (tower.config is None, tower.placed == "after", tower.name))

    def expected_tensors(self, config: GemmaConfig) -> dict[str, tuple[int, ...]]:
        """Every tensor that a config calls for, by full checkpoint name with its shape: the text model's, and those of
        declared towers that have a plugin. Raises ConfigError and PluginError."""
        shapes = expected_text_tensors(config)
        for tower in self.towers_of(config):
            shapes |= tower.tensors(config)
        return shapes

    def select_device(self, name: str | None = None, context: Context | None = None) -> DeviceBackend:
        """The device of this name, or (None or ``auto``) the usable one with the highest priority.

        Raises PluginError for an unknown name and DeviceError, with the reason, for one that cannot be used here.
        """
        if (wanted := _wanted("device", name)) is not None:
            device = self._by_name("device", wanted)
            reason = self.unusable(device)
            if reason is not None:
                raise DeviceError(_clip(f"--device '{one_line(name, VALUE_LIMIT)}' cannot be used: {reason}"))
            return device
        reasons = []
        for entry in self._candidates("device", context or Context()):
            reason = entry.conflict or self.unusable(entry.description)
            if reason is None:
                return entry.description
            reasons.append((entry.name, reason))
        if not reasons:
            raise DeviceError(self._no_match("device", context or Context()))
        # the last device needs the least, so its reason is the one that users can act on
        shown = [f"{name}: {one_line(reason, 40 if i else 300)}" for i, (name, reason) in enumerate(reasons[::-1])]
        raise DeviceError(_clip(f"--device auto: no usable device (gemma4 doctor says more): {'; '.join(shown)}"))

    @staticmethod
    def unusable(device: DeviceBackend) -> str | None:
        """Why a device cannot be used here, on one line, or None. An exception of the plugin is a reason."""
        try:
            reason = device.unusable()
        except KeyboardInterrupt:
            raise
        except Gemma4Error as error:
            return one_line(error)
        except BaseException as error:
            return describe(error)
        return None if reason is None else one_line(reason) or "no reason given"

    # ------------------------------------------------------------------------------------------------ looking

    def rows(self) -> list[Row]:
        """A row per description, per command, and per entry point without any of these."""
        plugins = self._loaded()
        warnings = {p.origin: "; ".join(p.warnings) for p in plugins}
        rows = []
        for kind in KINDS:
            for e in self._entries[kind]:
                error = e.conflict or self.match_errors.get((kind, e.name.casefold())) or warnings[e.origin] or None
                status = "failed" if e.conflict else "loaded"
                rows.append(Row(e.name, kind, e.summary, status, e.origin.distribution, e.origin.version, error))
        for c in command_entries():
            kind_shown = None if c.status == "blocked" else "command"
            rows.append(Row(c.name, kind_shown, c.summary, c.status, c.origin.distribution, c.origin.version, c.error))
        for p in plugins:
            if p.status != "loaded" or not p.descriptions:
                error = "; ".join([*p.errors, *p.warnings]) or None
                o = p.origin
                rows.append(Row(o.entry_point, None, None, p.status, o.distribution, o.version, error))
        return rows

    def problems(self) -> list[str]:
        """Problems of plugins, one line each. A blocked plugin is not a problem."""
        problems = []
        for plugin in self._loaded():
            if plugin.errors:
                problems.append(f"{plugin.origin} failed: {'; '.join(plugin.errors)}")
            problems += [f"{plugin.origin}: {warning}" for warning in plugin.warnings]
        for kind, entries in self._entries.items():
            problems += sorted({f"{kind} '{entry.name}': {entry.conflict}" for entry in entries if entry.conflict})
        problems += [f"{kind} '{name}': {error}" for (kind, name), error in self.match_errors.items()]
        problems += [f"command '{c.name}' of {c.origin.distribution}: {c.error}" for c in command_entries() if c.error]
        return problems + list(self.manager.warnings)

    def unavailable(self) -> dict[str, str]:
        """Entry points that cannot be used, with the reason: ``blocked by …`` or ``failed``."""
        words = {"blocked": f"blocked by {DISABLE}", "failed": "failed, see gemma4 plugins"}
        return {p.origin.entry_point: words[p.status] for p in self._loaded() if p.status in words}

    def register(self, plugin: object, name: str | None = None) -> None:
        """Add a plugin by hand, as in a notebook. Raises PluginError where it fails; nothing of it stays then."""
        self.manager.register(plugin, name or str(getattr(plugin, "__name__", type(plugin).__name__)))
        self._source = None

    def unregister(self, name: str) -> None:
        """Remove a plugin that was added by hand. Raises PluginError for an unknown name."""
        self.manager.unregister(name)
        self._source = None

    def reload(self) -> None:
        """Read entry points again on the next use. Modules stay imported."""
        self.manager.reload()
        self._source = None
        self.match_errors.clear()

    def __repr__(self) -> str:
        return "\n".join([*map(repr, self._views), *(f"! {problem}" for problem in self.problems())])

    def _repr_html_(self) -> str:
        problems = "".join(f"<li>{html.escape(problem)}</li>" for problem in self.problems())
        return "".join(view._repr_html_() for view in self._views) + (f"<ul>{problems}</ul>" if problems else "")

    # ------------------------------------------------------------------------------------------------ inside

    @property
    def _views(self) -> tuple[View[Any], ...]:
        return (self.formats, self.modalities, self.tokenizers, self.devices, self.optimizers, self.transforms,
                self.drafters, self.constraints, self.callbacks)

    def _view(self, kind: str) -> View[Any]:
        chooser = Chooser(partial(self.select, kind), partial(self.matching, kind), partial(self._absent, kind))
        return View(TITLES[kind], lambda: self._of(kind), chooser)

    def _of(self, kind: str) -> list[Entry[Any]]:
        if kind not in KINDS:
            raise PluginError(f"no plugin kind '{one_line(kind, VALUE_LIMIT)}': {', '.join(KINDS)}")
        self._loaded()
        return self._entries[kind]

    def _loaded(self) -> list[LoadedPlugin]:
        plugins = self.manager.plugins()
        if self._source is not plugins:
            self._entries = _gather(plugins)
            self._source = plugins
        return plugins

    def _candidates(self, kind: str, context: Context) -> list[Entry[Any]]:
        entries = [entry for entry in self._of(kind) if self._matches(entry, context)]
        return sorted(entries, key=lambda entry: (-entry.description.priority, entry.name.casefold()))

    def _matches(self, entry: Entry[Any], context: Context) -> bool:
        key = (entry.kind, entry.name.casefold())
        try:
            matches = bool(entry.description.matches(context))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.match_errors[key] = one_line(f"matches() raised {describe(error)}")
            return False
        self.match_errors.pop(key, None)
        return matches

    def _by_name(self, kind: str, name: str) -> Any:
        entries = [entry for entry in self._of(kind) if entry.name.casefold() == name.casefold()]
        if not entries:
            raise UnknownPluginError(self._absent(kind, name))
        if entries[0].conflict is not None:
            raise PluginError(self._conflict(kind, entries[0]))
        return entries[0].description

    def _conflict(self, kind: str, entry: Entry[Any]) -> str:
        text = f"{OPTIONS[kind]} '{entry.name}': {entry.conflict}; uninstall one of them or block its entry point"
        return _clip(f"{text} with {DISABLE}")

    def _absent(self, kind: str, name: object) -> str:
        shown = f"{OPTIONS[kind]} '{one_line(name, VALUE_LIMIT)}'"
        key = str(name).casefold()
        for entry in self._of(kind):
            if entry.conflict is not None and entry.name.casefold() == key:
                return self._conflict(kind, entry)
        for plugin in self._loaded():
            if plugin.origin.entry_point.casefold() == key and plugin.status == "blocked":
                return _clip(f"{shown}: {plugin.origin} is blocked by {DISABLE}")
            if plugin.origin.entry_point.casefold() == key and plugin.status == "failed":
                return _clip(f"{shown}: {plugin.origin} failed: {'; '.join(plugin.errors)}")
        names = [entry.name for entry in self._of(kind) if entry.conflict is None]
        known = f"known: {', '.join(names)}" if names else "none is installed"
        return _clip(f"unknown {shown}{nearest(str(name), names)} ({known}){self._trouble()}")

    def _no_match(self, kind: str, context: Context) -> str:
        names = [entry.name for entry in self._of(kind)]
        where = f"{context.path}: " if context.path is not None else ""
        if not names:
            return _clip(f"{where}no {kind} plugin is installed{self._trouble()}")
        raised = [error for (of, _), error in self.match_errors.items() if of == kind]
        text = f"{where}no {kind} plugin can handle this; installed: {', '.join(names)}"
        return _clip(text + (f"; {'; '.join(raised)}" if raised else "") + self._trouble())

    def _trouble(self) -> str:
        """The blocked and failed entry points, for a message about something that is missing."""
        plugins = self._loaded()
        parts = []
        for status in ("blocked", "failed"):
            names = [plugin.origin.entry_point for plugin in plugins if plugin.status == status]
            if names:
                parts.append(f"{status}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
        return f"; {'; '.join(parts)} (see gemma4 plugins)" if parts else ""


def _gather(plugins: list[LoadedPlugin]) -> dict[str, list[Entry[Any]]]:
    """Entries of each kind sorted by name; a name claimed more than once is marked on each of them."""
    entries: dict[str, list[Entry[Any]]] = {kind: [] for kind in KINDS}
    for plugin in plugins:
        for kind, description in plugin.descriptions:
            entries[kind].append(Entry(kind, description, plugin.origin))
    for kind, found in entries.items():
        by_name: dict[str, list[Entry[Any]]] = defaultdict(list)
        for entry in found:
            by_name[entry.name.casefold()].append(entry)
        marked = []
        for same in by_name.values():
            clash = f"claimed by {' and by '.join(str(e.origin) for e in same[:3])}" if len(same) > 1 else None
            marked += [replace(entry, conflict=clash) for entry in same]
        entries[kind] = sorted(marked, key=lambda entry: entry.name.casefold())
    return entries


def check_part(tower: ModalityTower, config: GemmaConfig) -> None:
    """Let a tower read its part of config.json. Raises ConfigError for a wrong one, PluginError where reading fails."""
    try:
        if tower.config is not None:
            tower.config(config)
    except Gemma4Error:
        raise
    except Exception as error:
        raise PluginError(_clip(f"modality '{tower.name}' cannot read its config: {describe(error)}")) from error


def _wanted(kind: str, name: str | None) -> str | None:
    """The given name, None for ``auto``. Raises PluginError where it is not a string."""
    if name is not None and not isinstance(name, str):
        raise PluginError(_clip(f"{OPTIONS[kind]} {one_line(name, VALUE_LIMIT)}: give the name of a plugin, or auto"))
    return None if name is None or name.casefold() == "auto" else name


def _clip(text: str) -> str:
    return one_line(text, MESSAGE_LIMIT)


registry = Registry(PluginManager())
"""The registry of this process. It loads plugins when it is first asked for one."""
