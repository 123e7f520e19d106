"""Reading entry points of installed distributions, without importing what they name."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

from gemma4_core.plugins.origin import Origin, describe, one_line

GROUP = "gemma4"
COMMAND_GROUP = "gemma4.commands"
OWN_DISTRIBUTION = "tinygrad-gemma4"
DISABLE = "GEMMA4_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Found:
    """An entry point as its distribution declares it; ``error`` is set where the distribution's file cannot be read."""

    origin: Origin
    entry_point: EntryPoint | None
    summary: str | None = None
    """The distribution's own one-line description."""
    error: str | None = None


@dataclass(frozen=True)
class CommandEntry:
    """A command. ``entry_point.load()`` imports it and gives the click command."""

    name: str
    origin: Origin
    entry_point: EntryPoint
    summary: str | None
    status: str
    """``loaded`` (there, not imported yet), ``blocked`` or ``failed``."""
    error: str | None = None


def disabled() -> dict[str, str]:
    """Entry-point names in ``GEMMA4_DISABLE_PLUGINS``: from the case-folded name to the one that was typed."""
    names = (name.strip() for name in os.environ.get(DISABLE, "").split(","))
    return {name.casefold(): name for name in names if name}


def discover(group: str) -> list[Found]:
    """Entry points of a group, sorted by name and distribution. Of two copies of one distribution the first counts."""
    found: list[Found] = []
    seen: set[str] = set()
    for distribution in distributions():
        key = re.sub(r"[-_.]+", "-", _folder_name(distribution) or _metadata(distribution)[0]).casefold()
        if key in seen or _is_hollow(distribution):
            continue
        seen.add(key)
        if not _mentions(distribution):  # reading the metadata of all the others takes a tenth of a second
            continue
        name, version, summary = _metadata(distribution)
        found += _of_distribution(distribution, group, name, version, summary)
    return sorted(found, key=lambda f: (f.origin.entry_point.casefold(), f.origin.distribution or ""))


def command_entries() -> list[CommandEntry]:
    """Commands of all distributions, without importing any. A name that two others claim is ``failed``; a command of
    this distribution always wins."""
    blocked = disabled()
    by_name: dict[str, list[tuple[Found, EntryPoint]]] = defaultdict(list)
    for found in discover(COMMAND_GROUP):
        if found.entry_point is not None:
            by_name[found.origin.entry_point.casefold()].append((found, found.entry_point))
    entries = []
    for key, group in by_name.items():
        ours = any(found.origin.distribution == OWN_DISTRIBUTION for found, _ in group)
        for found, entry_point in group:
            name, clash = found.origin.entry_point, None
            if len(group) > 1 and ours and found.origin.distribution != OWN_DISTRIBUTION:
                clash = f"gemma4 has its own command '{name}', which wins"
            elif len(group) > 1 and not ours:
                clash = "two commands with one name: " + " and ".join(str(other.origin) for other, _ in group)
            status = "blocked" if key in blocked else "failed" if clash else "loaded"
            error = None if key in blocked else clash
            entries.append(CommandEntry(name, found.origin, entry_point, found.summary, status, error))
    return entries


def _of_distribution(
    distribution: Distribution, group: str, name: str, version: str | None, summary: str | None
) -> Iterator[Found]:
    try:
        entry_points = [ep for ep in distribution.entry_points if ep.group == group]
    except Exception as error:
        yield Found(Origin(name, name, version), None, None, f"entry_points.txt cannot be read: {describe(error)}")
        return
    for entry_point in entry_points:
        yield Found(Origin(one_line(entry_point.name, 100), name, version), entry_point, summary)


def _folder_name(distribution: Distribution) -> str | None:
    """The name that the metadata's folder has, which costs less than reading the metadata."""
    path = getattr(distribution, "_path", None)
    found = re.fullmatch(r"([^-]+)(-.*)?\.(dist|egg)-info", path.name) if path is not None else None
    return found[1] if found else None


def _is_hollow(distribution: Distribution) -> bool:
    """Whether nothing but the metadata's folder is left: an unpacked source archive or a half-removed package, which
    must not hide the installed copy."""
    path = getattr(distribution, "_path", None)
    return path is not None and path.is_dir() and not any(
        (path / name).is_file() for name in ("METADATA", "PKG-INFO", "entry_points.txt")
    )


def _mentions(distribution: Distribution) -> bool:
    """Whether a distribution's entry points name one of our groups, also in a file that cannot be parsed."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except Exception:
        return False
    return re.search(r"^\s*\[\s*gemma4(\.commands)?\s*\]", text, re.MULTILINE) is not None


def _metadata(distribution: Distribution) -> tuple[str, str | None, str | None]:
    """Name, version and summary; metadata of a half-removed package may be absent or unreadable."""
    values: list[str | None] = []
    for key in ("Name", "Version", "Summary"):
        try:
            value = distribution.metadata[key]
        except Exception:
            value = None
        values.append(one_line(value) if value else None)
    path = getattr(distribution, "_path", None)
    name = values[0] or (path.name.partition("-")[0] if path is not None else "unknown")
    return name, values[1], values[2]
