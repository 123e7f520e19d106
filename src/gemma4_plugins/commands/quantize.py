"""Write an int8 checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gemma4_core.cli import completion
from gemma4_core.cli.base import GemmaCommand, ManyOption, prefer_typed
from gemma4_core.cli.options import long_running, model_option, overwrite_option
from gemma4_core.cli.output import note, on_terminal, write


@click.command("quantize", cls=GemmaCommand)
@model_option(required=False, help="Checkpoint folder, hub name or alias to quantise.")
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Folder to write.")
@overwrite_option()
@click.option("--models-dir", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
              help="Folder of checkpoints as gemma4 download --models-dir makes it; results are written beside them.")
@click.option("--sizes", cls=ManyOption, separator=",", metavar="SIZE...",
              help="With --models-dir: E2B, E4B, 26B-A4B, 31B; with -it for the tuned ones.")
@click.option("--format", "format_name", default="int8", show_default=True, metavar="NAME",
              shell_complete=completion.plugins("formats"),
              help="Checkpoint format plugin to write.")
@click.pass_context
@long_running
def quantize_command(
    ctx: click.Context, out: Path | None, overwrite: bool, sizes: Sequence[str], format_name: str, **named: Any
) -> None:
    """Write a checkpoint with quantised weights, half the size; they are computed with as they are stored.

    \b
    gemma4 quantize --model-dir models/gemma-4-E2B-it --out models/gemma-4-E2B-it-int8
    gemma4 quantize --models-dir models --sizes E2B E4B

    Memory use stays small whatever the model's size. An interrupted run continues when it is started again.
    """
    prefer_typed(ctx, named, "model", "models_dir")
    model, models_dir = named["model"], named["models_dir"]
    pairs = list(jobs(model, out, models_dir, sizes, format_name))
    from gemma4_core.quantize import done_before, quantize

    for source, target in pairs:
        if models_dir is not None and not overwrite and done_before(target, format_name):
            note(f"{target} exists already")
        else:
            quantize(source, target, format_name, overwrite)
        write(f"{target}\n")
    if on_terminal():
        note(f'try: gemma4 generate -m {pairs[-1][1]} --prompt "Once upon a time"')


def jobs(
    model: str | None, out: Path | None, models_dir: Path | None, sizes: Sequence[str], format_name: str
) -> list[tuple[str | Path, Path]]:
    """Source and target of each checkpoint to write. Raises UsageError for options that exclude each other."""
    if (model is None) == (models_dir is None):
        raise click.UsageError("give either --model-dir or --models-dir.")
    if model is not None:
        if out is None or sizes:
            raise click.UsageError("--model-dir needs --out and goes without --sizes.")
        return [(model, out)]
    if out is not None or not sizes:
        raise click.UsageError("--models-dir needs --sizes and goes without --out.")
    from gemma4_core.checkpoint.hub import repositories

    assert models_dir is not None
    names = [name.split("/")[1] for name in repositories(sizes)]
    return [(models_dir / name, models_dir / f"{name}-{format_name.lower()}") for name in names]
