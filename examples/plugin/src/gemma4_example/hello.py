"""Command ``gemma4 hello``."""

from __future__ import annotations

import click


@click.command()
@click.option("--name", default="you", show_default=True, help="Whom to greet.")
def hello(name: str) -> None:
    """Greet somebody and say what is installed."""
    from gemma4_core import registry

    click.echo(f"Hello {name}! Formats: {', '.join(registry.formats)}. Devices: {', '.join(registry.devices)}.")
