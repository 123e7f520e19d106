"""List plugins, what they bring, and which failed."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.commands import commands, load_command
from gemma4_core.cli.output import write
from gemma4_core.cli.tables import columns, fitted
from gemma4_core.errors import PluginError

if TYPE_CHECKING:
    from gemma4_core.plugins import Row

KINDS = (
    "format", "modality", "tokenizer", "device", "optimizer", "transform", "drafter", "constraint", "callback",
    "command",
)
COLUMNS = ("NAME", "KIND", "STATUS", "FROM", "SUMMARY")


@click.command("plugins", cls=GemmaCommand)
@click.option("--kind", type=click.Choice(KINDS, case_sensitive=False), help="Only plugins of this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object per plugin.")
def plugins_command(kind: str | None, as_json: bool) -> None:
    """List the installed plugins, where they come from, and which failed to load.

    \b
    gemma4 plugins
    gemma4 plugins --kind device --json

    GEMMA4_DISABLE_PLUGINS=name,name blocks entry points by name; GEMMA4_DEBUG=1 shows the tracebacks of failures.
    """
    from gemma4_core.plugins import registry

    rows = [_command(row) for row in registry.rows() if kind is None or row.kind == kind.casefold()]
    if as_json:
        write(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
        return
    table = []
    for row in rows:
        source = f"{row.distribution or 'by hand'} {row.version or ''}".strip()
        table.append((row.name, row.kind or "-", row.status, source, row.summary or row.error or ""))
    lines = columns(COLUMNS, table) if table else []
    shadowed = [f"command '{r.name}' of {r.distribution}: {r.error}" for r in rows if r.kind == "command" and r.error]
    lines += fitted([f"! {problem}" for problem in dict.fromkeys([*registry.problems(), *shadowed])])
    write("".join(f"{line}\n" for line in lines))


def _command(row: Row) -> Row:
    """A row of a command with the command's own summary, or why it cannot run; other rows as they are."""
    if row.kind != "command" or row.status != "loaded":
        return row
    try:
        command = load_command(commands()[row.name])
    except PluginError as error:
        return dataclasses.replace(row, status="failed", error=str(error))
    return dataclasses.replace(row, summary=command.get_short_help_str(200))
