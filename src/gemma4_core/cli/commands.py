"""The commands: entry points of the group ``gemma4.commands``, imported only when they run."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

import click

from gemma4_core.errors import PluginError
from gemma4_core.plugins.entrypoints import OWN_DISTRIBUTION, CommandEntry, command_entries

DOCSTRING = re.compile(r'(?:\s|#[^\n]*\n)*("""(?:[^"\\]|\\.|"(?!""))*""")', re.DOTALL)
HEAD_BYTES = 4096


def commands() -> dict[str, CommandEntry]:
    """Commands by name, without importing any: this distribution's first, each group in alphabetical order. Blocked
    commands are left out."""
    entries = [entry for entry in command_entries() if entry.status != "blocked" and entry.entry_point]
    found: dict[str, CommandEntry] = {}
    for entry in sorted(entries, key=lambda entry: (not is_ours(entry), entry.name)):
        found.setdefault(entry.name, entry)
    return found


def is_ours(entry: CommandEntry) -> bool:
    """Whether a command comes with this distribution."""
    return entry.origin.distribution == OWN_DISTRIBUTION


def origin(entry: CommandEntry) -> str:
    """The distribution of a command and its version, as ``name 1.0``."""
    return f"{entry.origin.distribution} {entry.origin.version or ''}".strip()


def summary(entry: CommandEntry) -> str:
    """A command's line in the list: the first line of its module's docstring, read without importing the module; the
    distribution's summary where there is none."""
    return docstring(entry.entry_point.module) or entry.summary or ""


@cache
def docstring(module: str) -> str | None:
    """The first line of a module's docstring, read from its source; None where there is no source or no docstring."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin)
        if rest:
            path = path.parent.joinpath(*rest)
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        with open(path, encoding="utf-8") as file:
            found = DOCSTRING.match(file.read(HEAD_BYTES))
        return ast.literal_eval(found[1]).strip().partition("\n")[0] if found else None
    except (ImportError, OSError, ValueError, SyntaxError, AttributeError):
        return None


def load_command(entry: CommandEntry) -> click.Command:
    """Import a command. Raises PluginError, naming command and distribution, for whatever goes wrong."""
    from gemma4_core.plugins.origin import describe

    who = f"command '{entry.name}' of {origin(entry)}"
    if entry.status == "failed":
        raise PluginError(f"{who} cannot be used: {entry.error}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            command = entry.entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin must not end the program
        raise PluginError(f"{who} failed to load: {describe(error)}; update or uninstall it") from error
    if not isinstance(command, click.Command):
        raise PluginError(f"{who} is {type(command).__name__}, not a click command; update or uninstall it")
    return command
