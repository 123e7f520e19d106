"""``gemma4 plugins``: what is installed, from where, and what went wrong."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from gemma4_core.cli.commands import own_commands

if TYPE_CHECKING:
    from gemma4_core.plugins import Row

KINDS = ("format", "modality", "tokenizer", "device", "optimizer", "transform", "command")
COLUMNS = ("NAME", "KIND", "STATUS", "FROM", "SUMMARY")
SUMMARY_WIDTH = 100


@click.command("plugins")
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

    rows = [_shadowed(row) for row in registry.rows() if kind is None or row.kind == kind.casefold()]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    table = [COLUMNS]
    for row in rows:
        source = f"{row.distribution or 'by hand'} {row.version or ''}".strip()
        table.append((row.name, row.kind or "-", row.status, source, row.summary or row.error or ""))
    widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS) - 1)]
    for line in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(line, widths, strict=False)]
        click.echo("  ".join([*cells, line[-1][:SUMMARY_WIDTH]]).rstrip())
    shadowed = [f"command '{r.name}' of {r.distribution}: {r.error}" for r in rows if r.kind == "command" and r.error]
    for problem in dict.fromkeys([*registry.problems(), *shadowed]):
        click.echo(f"! {problem}")


def _shadowed(row: Row) -> Row:
    """A plugin's command that never runs, because gemma4 has one of that name."""
    if row.kind != "command" or row.name not in own_commands():
        return row
    return dataclasses.replace(row, status="failed", error=f"gemma4 has its own command '{row.name}', which wins")
