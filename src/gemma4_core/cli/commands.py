"""Which commands there are: ours by module, other distributions' by entry point, none imported until it runs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import click

from gemma4_core.errors import PluginError

if TYPE_CHECKING:
    from gemma4_core.plugins import CommandEntry


@dataclass(frozen=True)
class OwnCommand:
    """A command of this package: where it is, and its line in the list."""

    module: str
    attribute: str
    help: str

    def exists(self) -> bool:
        """Whether its module is part of this installation. Imports nothing but the packages above it."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            return False

    def load(self) -> click.Command:
        """Import it."""
        return getattr(importlib.import_module(self.module), self.attribute)


def _own(name: str, help: str, module: str | None = None) -> tuple[str, OwnCommand]:
    return name, OwnCommand(module or f"gemma4_core.cli.{name}", f"{name}_command", help)


OWN_COMMANDS: Mapping[str, OwnCommand] = MappingProxyType(dict([
    _own("generate", "Answer one prompt."),
    _own("chat", "Talk with a model."),
    _own("info", "What a checkpoint is and how much memory it needs, without loading it."),
    _own("models", "List, show and remove the models on this machine."),
    _own("plugins", "List plugins, what they bring, and what became of them."),
    _own("doctor", "Check devices, compiler, plugins, and a checkpoint."),
    _own("download", "Fetch the official checkpoints."),
    _own("demo", "Show that everything works, with a tiny model."),
    _own("quantize", "Write an int8 checkpoint."),
    _own("bench", "Measure the speed of a model."),
    _own("perplexity", "Measure how well a model predicts a text."),
    _own("train", "Fine-tune a model."),
]))
"""In the order of the help page. Those whose module is not part of this installation are not listed."""


def own_commands() -> dict[str, OwnCommand]:
    """The commands of this package that are there."""
    return {name: command for name, command in OWN_COMMANDS.items() if command.exists()}


def plugin_commands() -> dict[str, CommandEntry]:
    """Commands that other distributions bring, by name, none imported; those that are blocked are left out."""
    from gemma4_core.plugins import command_entries

    return {entry.name: entry for entry in command_entries() if entry.status != "blocked" and entry.entry_point}


def origin(entry: CommandEntry) -> str:
    """Where a command comes from, as ``distribution 1.0``."""
    return f"{entry.origin.distribution} {entry.origin.version or ''}".strip()


def load_plugin_command(entry: CommandEntry) -> click.Command:
    """Import a plugin's command. Raises PluginError, naming command and distribution, for whatever goes wrong."""
    from gemma4_core.plugins.origin import describe

    who = f"command '{entry.name}' of {origin(entry)}"
    if entry.status == "failed" or entry.entry_point is None:
        raise PluginError(f"{who} cannot be used: {entry.error}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            command = entry.entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin's exit is not ours
        raise PluginError(f"{who} failed to load: {describe(error)}; update or uninstall it") from error
    if not isinstance(command, click.Command):
        raise PluginError(f"{who} is {type(command).__name__}, a click command is expected; update or uninstall it")
    return command
