"""Plugins of one kind as a mapping by name, with a readable form in notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gemma4_core.errors import PluginError
from gemma4_core.plugins.origin import Origin, one_line

if TYPE_CHECKING:
    from gemma4_core.contracts import Context

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A description with its origin; ``conflict`` names the others that claim its name."""

    kind: str
    description: T
    origin: Origin
    conflict: str | None = None

    @property
    def name(self) -> str:
        return str(self.description.name)  # type: ignore[attr-defined]

    @property
    def summary(self) -> str:
        return one_line(self.description.summary)  # type: ignore[attr-defined]

    @property
    def package(self) -> str:
        if self.conflict is not None:
            return f"unusable: {self.conflict}"
        return f"{self.origin.distribution or 'by hand'} {self.origin.version or ''}".strip()


class UnknownPluginError(PluginError, KeyError):
    """No plugin of this name can be used. Also a KeyError, so that a view is an ordinary mapping."""

    def __str__(self) -> str:
        return str(self.args[0])


class Chooser:
    """The registry's functions for one kind, which a view calls."""

    def __init__(
        self,
        one: Callable[[Context | None, str | None], Any],
        everything: Callable[[Context | None, Mapping[str, Any] | None], list[Any]],
        absent: Callable[[object], str],
    ) -> None:
        self.one = one
        self.all = everything
        self.absent = absent


class View(Mapping[str, T]):
    """Descriptions of one kind by name, in alphabetical order; looking up ignores case.

    ``view["bf16"]`` and ``view.bf16`` are the same. A name that two plugins claim is left out; looking it up raises an
    error that names both. Nothing is loaded before the first use.
    """

    def __init__(self, title: str, entries: Callable[[], list[Entry[T]]], chooser: Chooser) -> None:
        self._title = title
        self._entries = entries
        self._chooser = chooser

    def select(self, context: Context | None = None, name: str | None = None) -> T:
        """The one to use: by name, or (None or ``auto``) the matching one with the highest priority.

        Raises PluginError for an unknown, blocked, failed or doubly claimed name, for a tie, and for no match.
        """
        return self._chooser.one(context, name)

    def matching(self, context: Context | None = None, values: Mapping[str, Any] | None = None) -> list[T]:
        """All that match, highest priority first, then by name. ``values`` are option values by keyword (transforms).

        Raises PluginError where a name that two plugins claim would be among them.
        """
        return self._chooser.all(context, values)

    def entries(self) -> list[Entry[T]]:
        """Everything registered with its origin, names claimed twice included."""
        return list(self._entries())

    def _usable(self) -> dict[str, Entry[T]]:
        return {entry.name.casefold(): entry for entry in self._entries() if entry.conflict is None}

    def __getitem__(self, name: str) -> T:
        entry = self._usable().get(name.casefold()) if isinstance(name, str) else None
        if entry is None:
            raise UnknownPluginError(self._chooser.absent(name))
        return entry.description

    def __iter__(self) -> Iterator[str]:
        return iter([entry.name for entry in self._usable().values()])

    def __len__(self) -> int:
        return len(self._usable())

    def __getattr__(self, name: str) -> T:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except UnknownPluginError as error:
            raise AttributeError(str(error)) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in self if name.isidentifier())})

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        rows = [(entry.name, one_line(entry.summary, 90), entry.package) for entry in self._entries()]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"  {name:<{widths[0]}}  {text:<{widths[1]}}  {package}".rstrip() for name, text, package in rows]
        return "\n".join([f"{self._title}: {len(self)}", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(entry.name)}</code></td><td>{html.escape(entry.summary)}</td>"
            f"<td>{html.escape(entry.package)}</td></tr>"
            for entry in self._entries()
        )
        head = "<tr><th>name</th><th>summary</th><th>from</th></tr>"
        return f"<table><caption>{html.escape(self._title)}</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"
