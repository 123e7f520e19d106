"""Answer many prompts of a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.options import (
    FilePath,
    Whole,
    clipped,
    context_option,
    device_options,
    literal_option,
    loading_options_with,
    long_running,
    model_option,
    sampling_options,
    schema_option,
)
from gemma4_core.cli.output import json_text, note, on_terminal, write
from gemma4_core.cli.plugin_options import PluginOptionsCommand, PluginParam, PluginValues
from gemma4_core.errors import InputError
from gemma4_plugins.commands.model_loading import Loading, model_name
from gemma4_plugins.commands.text_input import read_schema

if TYPE_CHECKING:
    from gemma4_core.processing.processor import GemmaMultimodalProcessor
    from gemma4_plugins.commands.batch.input_rows import Batch
    from gemma4_plugins.commands.batch.progress import BatchProgress
    from gemma4_plugins.commands.batch.row_file import Outputs

PARALLEL = 8
"""Rows that run at once where nothing else is asked for."""


class BatchCommand(PluginOptionsCommand):
    """A command with the options of plugins but for media: the lines name those."""

    def plugin_params(self, ctx: click.Context) -> dict[str, PluginParam]:
        return {name: known for name, known in super().plugin_params(ctx).items() if known.media_keyword is None}


class Parallel(click.ParamType):
    """A number of rows, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if str(value).strip().lower() == "auto":
            return "auto"
        try:
            return Whole(1, 256).convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{clipped(value)} is neither a whole number from 1 to 256 nor auto.", param, ctx)


@click.command("batch", cls=BatchCommand)
@model_option()
@click.option("--input", "-i", "source", type=FilePath(), required=True, metavar="FILE",
              help="JSON Lines: OpenAI's batch lines, or an object with messages, prompt or text on each.")
@click.option("--output", "-o", type=FilePath(), required=True, metavar="FILE",
              help="JSON Lines with the answers; rows that it holds already are not answered again.")
@click.option("--errors", type=FilePath(), default=None, metavar="FILE",
              help="JSON Lines with rows that failed. Default: beside the output, as out.errors.jsonl.")
@click.option("--overwrite", is_flag=True, allow_from_autoenv=False,
              help="Begin anew, whatever the output and the errors file hold.")
@click.option("--parallel", type=Parallel(), default=PARALLEL, show_default=True,
              help="Rows that run at once; auto is as many as fit into free memory.")
@click.option("--thinking/--no-thinking", default=False, help="Let the model think before it answers.")
@schema_option
@click.option("--raw", is_flag=True, help="Do not apply the chat template to prompt.")
@literal_option
@click.option("--allow-urls", is_flag=True, help="Fetch media given as URLs.")
@sampling_options
@device_options
@loading_options_with(context_option("Tokens of a prompt with its answer. Default: the model's, at most 8192."))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about the run at its end.")
@long_running
def batch_command(
    source: Path, output: Path, errors: Path | None, overwrite: bool, parallel: int | str, as_json: bool,
    thinking: bool, raw: bool, literal: bool, plugin_values: PluginValues, **values: Any,
) -> None:
    """Answer many prompts of a file, several at once.

    \b
    gemma4 batch -m e2b-it --input in.jsonl --output out.jsonl
    gemma4 batch -m e2b-it -i in.jsonl -o out.jsonl --parallel auto --max-new-tokens 256

    Every line is a row: {"id": …, "prompt": …} or an OpenAI batch line with custom_id and body. Rows are written as
    they finish. Interrupted at any time, the same command goes on where it stopped.
    """
    from gemma4_plugins.commands.batch.input_rows import Batch, Defaults
    from gemma4_plugins.commands.batch.progress import BatchProgress
    from gemma4_plugins.commands.batch.row_file import Outputs

    constraint = read_schema(values.pop("schema"))
    values |= {"constraint": constraint} if constraint is not None else {}
    loading = Loading.from_options(values)
    outputs = Outputs(output, errors, overwrite)
    check_apart(source, outputs)
    batch = Batch.scanned(source, Defaults(values, thinking, raw, literal))
    try:
        outputs.lock(batch.ids)
        before = len(outputs.done) + len(outputs.failed)
        progress = BatchProgress(len(batch.ids), before)
        prompt_tokens = 0
        if before < len(batch.ids) or overwrite:
            prompt_tokens = answer(batch, outputs, progress, loading, plugin_values, parallel)
    finally:
        outputs.close()
    if as_json:
        write(json_text(report(batch, outputs, progress, prompt_tokens)) + "\n")
    if outputs.failed:
        raise InputError(failures(batch, outputs))
    if on_terminal():
        note(f"{len(batch.ids)} rows in {output}, {before} of them before this run")


def answer(
    batch: Batch, outputs: Outputs, progress: BatchProgress, loading: Loading, plugins: PluginValues,
    parallel: int | str,
) -> int:
    """Load the model and answer the rows that are left; the tokens of their prompts."""
    from gemma4_plugins.commands.batch.run import BatchRun

    values = batch.defaults.values
    model = loading.load(
        plugins, lambda processor: check_model(batch, processor), values["draft"], values.get("constraint")
    )
    run = BatchRun(model, batch, outputs, progress)
    try:
        with progress:
            run.answer(parallel, loading.context)
    except KeyboardInterrupt:
        if on_terminal():
            note(f"stopped after {progress.done} of {progress.total} rows; run the same command to go on")
        raise
    return run.prompt_tokens


def check_apart(source: Path, outputs: Outputs) -> None:
    """Raise UsageError where two of the three files are one."""
    files = {"--input": source, "--output": outputs.output.path, "--errors": outputs.errors.path}
    seen: dict[str, str] = {}
    for option, path in files.items():
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise click.UsageError(f"{option} {path} is the same file as {other}.")


def check_model(batch: Batch, processor: GemmaMultimodalProcessor) -> None:
    """Raise InputError, before weights are read, for a checkpoint that cannot answer such lines."""
    from gemma4_core.text import has_text

    where = model_name(processor.context)
    if not has_text(processor.tokenizer.inner):
        raise InputError(f"{where} has no tokenizer, which a batch needs")
    if "messages" in batch.kinds and processor.template is None:
        raise InputError(f"{where} has no chat template (a base model?), which lines with messages need: give text")


def failures(batch: Batch, outputs: Outputs) -> str:
    """How many rows failed, and where to read why."""
    reason = outputs.reason or (batch.faults[0].message if batch.faults else "")
    told = f"{len(outputs.failed)} of {len(batch.ids)} rows failed, see {outputs.errors.path}"
    return f"{told}: {reason}" if reason else told


def report(batch: Batch, outputs: Outputs, progress: BatchProgress, prompt_tokens: int) -> dict[str, Any]:
    """The object that ``--json`` prints. Tokens and seconds are those of this run."""
    failed = len(outputs.failed)
    return {
        "input": str(batch.path),
        "output": str(outputs.output.path),
        "errors": str(outputs.errors.path) if failed else None,
        "rows": len(batch.ids),
        "answered": progress.done - failed,
        "failed": failed,
        "before": progress.before,
        "prompt_tokens": prompt_tokens,
        "generated_tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.rate, 3),
    }
