"""Merge adapters into a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from gemma4_core.cli import GemmaCommand, ManyOption, Number, model_option, note, on_terminal, overwrite_option, write


@click.command("fuse", cls=GemmaCommand)
@model_option(help="Checkpoint folder, hub name or alias of the base model.")
@click.option("--adapter", "adapters", cls=ManyOption, required=True, metavar="FOLDER",
              help="Adapter folder in the peft layout; several add up.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
              help="Folder to write.")
@overwrite_option()
@click.option("--format", "format_name", default="auto", show_default=True, metavar="NAME",
              help="Format to write: bf16 (ordinary weights), int8, …; auto is the base's format.")
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True,
              help="Type of weights that are not quantised; auto is the base's.")
@click.option("--strength", type=Number(-1e9, 1e9), default=1.0, show_default=True,
              help="Factor on the adapters' scale.")
def fuse_command(
    model: str, adapters: Sequence[str], out: Path, overwrite: bool, format_name: str, dtype: str, strength: float
) -> None:
    """Write a checkpoint with adapters merged into its weights.

    \b
    gemma4 fuse --model-dir e2b-it --adapter adapters/poet --out models/poet
    gemma4 fuse --model-dir models/e2b-int8 --adapter adapters/poet --out models/poet --format bf16

    Memory use stays small whatever the model's size. An interrupted run continues when it is started again.
    """
    from gemma4_lora.fusing import fuse

    wanted = None if format_name.lower() == "auto" else format_name
    fuse(model, adapters, out, format=wanted, dtype=None if dtype == "auto" else dtype, strength=strength,
         overwrite=overwrite)
    write(f"{out}\n")
    if on_terminal():
        note(f'try: gemma4 generate -m {out} --prompt "Once upon a time"')
