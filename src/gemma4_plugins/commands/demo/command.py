"""Show that everything works, with a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.options import Whole, device_options, overwrite_option
from gemma4_core.cli.output import note, on_terminal, write

NEXT = """What to try next:
  gemma4 doctor                                      devices, compiler, plugins
  gemma4 download --sizes E2B --it                   a real model (10 GB)
  gemma4 generate -m e2b-it "Hello"                  ask it
  gemma4 chat -m e2b-it                              talk with it
  gemma4 info --size 31B                             what a larger one needs
  gemma4 serve -m demo                               answer OpenAI's and Anthropic's clients; in a clone of this project
                                                     install it with: pip install -e plugins/gemma4-serve"""


@click.command("demo", cls=GemmaCommand)
@device_options
@click.option("--max-new-tokens", "--max-tokens", "-n", type=Whole(2, 900), default=48, show_default=True, metavar="N",
              help="Length of the answer that is timed.")
@click.option("--seed", type=Whole(0), default=None, metavar="N",
              help="Seed of the picture, the sound and the sum; without it they differ each time.")
@click.option("--keep", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Write the model, the picture and the sound to this folder.")
@overwrite_option("--keep")
def demo_command(
    device: str, beam: int, beam_seconds: float | None, max_new_tokens: int, seed: int | None, keep: Path | None,
    overwrite: bool,
) -> None:
    """Show that everything works here, with a tiny model: a text, a sum, a picture described, a sound written down."""
    from gemma4_plugins.commands.demo import packaged_demo
    from gemma4_plugins.commands.demo.show import show

    if on_terminal():
        note("loading and compiling a tiny model …")
    options: dict[str, Any] = {"device": device, "beam": beam, "beam_seconds": beam_seconds}
    lines = show(packaged_demo(), options, max_new_tokens, seed, keep, overwrite)
    write("\n".join([*lines, NEXT, ""]))

