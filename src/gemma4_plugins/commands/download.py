"""Fetch the official checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.output import note, on_terminal, write


@click.command("download", cls=GemmaCommand)
@click.option("--sizes", cls=ManyOption, separator=",", required=True, metavar="SIZE...",
              help="E2B, E4B, 26B-A4B, 31B; several may follow each other.")
@click.option("--it/--base", default=False, show_default=True, help="The instruction-tuned models, or the base ones.")
@click.option("--models-dir", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Folder that gets a folder per model. Default: the Hugging Face cache, where names and aliases "
                   "(e2b, e2b-it) are found.")
def download_command(sizes: Sequence[str], it: bool, models_dir: Path | None) -> None:
    """Fetch official checkpoints from huggingface.co. Files that exist are kept; an interrupted download continues.

    \b
    gemma4 download --sizes E2B --it
    gemma4 download --sizes E2B E4B 26B-A4B 31B --models-dir models

    Where a model needs permission, accept its terms on its page and log in with: hf auth login
    """
    from gemma4_core.checkpoint.hub import download

    folders = download(sizes, it=it, models_dir=models_dir)
    for folder in folders:
        write(f"{folder}\n")
    if folders and on_terminal():
        command = f"chat -m {folders[0]}" if it else f'generate -m {folders[0]} --prompt "Once upon a time"'
        note(f"try: gemma4 {command}")
