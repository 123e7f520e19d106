"""List, show and remove the models on this machine."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli import completion
from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.output import json_text, note, on_terminal, write
from gemma4_core.cli.tables import columns, fitted
from gemma4_core.errors import CheckpointError, Gemma4Error, InputError
from gemma4_core.formatting import human_bytes

if TYPE_CHECKING:
    from gemma4_core.checkpoint.hub_cache import CachedModel


@dataclass(frozen=True)
class Row:
    """A row of the list."""

    name: str
    """The name that ``--model`` takes."""
    hub_name: str | None
    folder: str
    bytes: int
    size: str | None
    """The official size that has this shape."""
    format: str | None
    problem: str | None


class ModelsGroup(GemmaCommand, click.Group):
    """A command that lists models where no sub-command is given."""


@click.group("models", cls=ModelsGroup, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object per model.")
@click.pass_context
def models_command(ctx: click.Context, as_json: bool) -> None:
    """List the Gemma 4 models on this machine: those of the Hugging Face cache, and the demo model.

    \b
    gemma4 models
    gemma4 models show e2b-it
    gemma4 models rm e2b-it

    gemma4 download fetches more. Other folders are opened by their path.
    """
    if ctx.invoked_subcommand is None:
        list_models(as_json)


@models_command.command("list", cls=GemmaCommand)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object per model.")
def list_command(as_json: bool) -> None:
    """List the models."""
    list_models(as_json)


@models_command.command("show", cls=GemmaCommand)
@click.argument("model", shell_complete=completion.models)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_command(model: str, as_json: bool) -> None:
    """Show a model's sizes, folder and memory, as gemma4 info does."""
    from gemma4_plugins.commands.info import gather, report_lines

    about = gather(model, None, "auto")
    write((json_text(about, indent=2) if as_json else "\n".join(fitted(report_lines(about)))) + "\n")


@models_command.command("rm", cls=GemmaCommand)
@click.argument("model", shell_complete=completion.models)
@click.option("--yes", "-y", is_flag=True, allow_from_autoenv=False, help="Remove without asking.")
def remove_command(model: str, yes: bool) -> None:
    """Remove a model from the Hugging Face cache; other folders are never touched."""
    from gemma4_core.checkpoint.hub_cache import remove_cached

    found = cached(model)
    size = human_bytes(found.nbytes)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"{model}: removing {found.name} ({size}) must be confirmed; add --yes")
        click.confirm(f"Remove {found.name} ({size}) from the Hugging Face cache?", abort=True, err=True)
    remove_cached(found.name)
    if on_terminal():
        note(f"removed {found.name}, {size}")


def cached(model: str) -> CachedModel:
    """A model of the cache by hub name or alias. Raises CheckpointError for everything else."""
    from gemma4_core.checkpoint.hub import DEMO, repository
    from gemma4_core.checkpoint.hub_cache import cached_models
    from gemma4_core.plugins.origin import nearest

    models = cached_models()
    name = repository(model)
    found = next((known for known in models if known.name == name), None)
    if found is not None:
        return found
    if model.lower() == DEMO:
        raise CheckpointError(f"{model} is part of this package and cannot be removed")
    if Path(model).exists():
        raise CheckpointError(f"{model} is a folder of yours, not in the Hugging Face cache; remove it yourself")
    known = [word for entry in models for word in (entry.name, entry.alias) if word]
    raise CheckpointError(f"{model} is not in the Hugging Face cache{nearest(model, known)}; gemma4 models lists it")


def list_models(as_json: bool) -> None:
    """Print the list."""
    found = rows()
    if as_json:
        write(json_text([asdict(row) for row in found], indent=2) + "\n")
        return
    table = [(row.name, row.size or "-", row.format or "-", human_bytes(row.bytes), row.problem or row.folder)
             for row in found]
    write("\n".join(columns(("NAME", "SHAPE", "FORMAT", "SIZE", "FOLDER"), table, right=(3,))) + "\n")
    if len(found) == 1 and on_terminal():
        note("fetch one with: gemma4 download --sizes E2B --it")


def rows() -> list[Row]:
    """The models on this machine, the demo model first."""
    from gemma4_core.checkpoint.hub import DEMO, packaged_demo
    from gemma4_core.checkpoint.hub_cache import cached_models

    demo = packaged_demo()
    size = sum(path.stat().st_size for path in demo.iterdir() if path.is_file())
    found = [row(DEMO, None, demo, size)]
    return found + [row(model.alias or model.name, model.name, model.folder, model.nbytes) for model in cached_models()]


def row(name: str, hub_name: str | None, folder: Path, nbytes: int) -> Row:
    """A row of the list, with the reason where the checkpoint cannot be opened."""
    from gemma4_core.checkpoint.context import read_context
    from gemma4_core.checkpoint.opening import select_format
    from gemma4_core.config import preset_of

    known: dict[str, Any] = {"size": None, "format": None, "problem": None}
    try:
        context = read_context(folder)
        assert context.config is not None
        known |= {"size": preset_of(context.config), "format": select_format(context, None).name}
    except Gemma4Error as error:
        known["problem"] = str(error)
    return Row(name, hub_name, str(folder), nbytes, **known)
