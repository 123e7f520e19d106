"""Measure how well a model predicts a text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import GemmaCommand
from gemma4_core.cli.options import Whole, device_options, format_option, long_running, model_option, tokenizer_option
from gemma4_core.cli.output import json_text, note, on_terminal, write
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_core.errors import InputError
from gemma4_plugins.commands.model_loading import Loading

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

TEXT_LIMIT = 256 << 20
"""Bytes of a text."""
CONTEXT = 2048
"""Default length of a window."""


@click.command("perplexity", cls=GemmaCommand)
@model_option()
@click.option("--text", required=True, metavar="FILE", help="Text to predict, in UTF-8; - reads standard input.")
@click.option("--context", "-c", type=Whole(2), default=None, metavar="TOKENS",
              help=f"Length of a window, BOS included. Default: {CONTEXT}, or the model's context if that is shorter.")
@click.option("--stride", type=Whole(1), default=None, metavar="TOKENS",
              help="Tokens that each window scores anew. Default: half a window.")
@click.option("--against", default=None, metavar="MODEL",
              help="Compare with another model of the same vocabulary, such as the one before quantising.")
@device_options
@format_option()
@tokenizer_option
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float32"]), default="auto", show_default=True,
              help="Type to compute in; auto is the files'.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@long_running
def perplexity_command(
    model: str, text: str, context: int | None, stride: int | None, against: str | None, as_json: bool, **values: Any
) -> None:
    """Measure how well a model predicts a text: perplexity, and with --against the difference from another model.

    \b
    gemma4 perplexity -m e2b --text book.txt
    gemma4 perplexity -m models/e2b-int8 --against models/e2b --text book.txt --json

    The text is cut into overlapping windows. Every token is scored once, with BOS and at least context minus stride
    tokens before it (fewer at the beginning of the text).
    """
    content = read_text(text)
    context = checked_context(context, model, against)
    stride = context // 2 if stride is None else stride
    if stride > context:
        raise click.UsageError(f"--stride {stride} is longer than the window of {context}: tokens would be left out.")
    ids: list[int] = []
    loaded = load(model, values, lambda processor: ids.extend(text_ids(processor, content, text)))
    other = None if against is None else load(against, values | {"format": "auto"}, lambda processor: None)
    report = measured(loaded, other, ids, context, stride)
    report = {"model": model, "against": against, "text": text, "tokens": len(ids), **report}
    write(json_text(report, indent=2) + "\n" if as_json else report_text(report))


def read_text(path: str) -> str:
    """The text. Raises InputError where it cannot be read, is empty, too long, or not UTF-8."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(TEXT_LIMIT + 1) if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
        else:
            with open(path, "rb") as file:
                data = file.read(TEXT_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"--text {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > TEXT_LIMIT:
        raise InputError(f"--text {path}: longer than {TEXT_LIMIT >> 20} MiB; give a part of it")
    if not data.strip():
        raise InputError(f"--text {path}: the file has no text; at least two tokens are needed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--text {path}: not UTF-8 text (byte {error.start})") from error


def checked_context(context: int | None, model: str, against: str | None) -> int:
    """The window's length, from the configs alone.

    Raises InputError where a model's context is shorter, or the vocabularies differ.
    """
    longest, size = limits(model)
    if against is not None:
        other_longest, other_size = limits(against)
        if size != other_size:
            raise InputError(f"--against {against}: its vocabulary has {other_size} tokens, that of {model} {size}; "
                             "only models of one vocabulary can be compared")
        longest = min(longest, other_longest)
    if context is not None and context > longest:
        raise InputError(f"--context {context}: the model's context is {longest}; give that or less")
    return min(CONTEXT, longest) if context is None else context


def limits(model: str) -> tuple[int, int]:
    """Longest context and size of the vocabulary from a model's config."""
    from gemma4_core.checkpoint.context import read_context
    from gemma4_core.checkpoint.hub import resolve_folder

    config = read_context(resolve_folder(model)).config
    assert config is not None
    return config.text_config.max_position_embeddings, config.text_config.vocab_size


def text_ids(processor: GemmaMultimodalProcessor, text: str, path: str) -> list[int]:
    """BOS and the text's ids. Raises InputError without a tokenizer, and for fewer than two tokens of text."""
    from gemma4_core.text import has_text, prompt_ids

    tokenizer, bos = processor.tokenizer, processor.context.config.bos_token_id  # type: ignore[union-attr]
    if tokenizer is None or not has_text(tokenizer):
        raise InputError(f"--text {path}: {processor.context.path} has no tokenizer; put the model's tokenizer.json "
                         "into it")
    ids = prompt_ids(tokenizer, text, bos)
    count = len(ids) - (bos is not None)
    if count < 2:
        raise InputError(f"--text {path}: {count} token of text; at least two are needed")
    return ids


def load(model: str, values: dict[str, Any], check: Callable[[GemmaMultimodalProcessor], None]) -> LoadedModel:
    """Load a text model; ``check`` runs before its weights are read."""
    if on_terminal():
        note(f"loading {model}")
    return Loading.from_options({**values, "model": model, "modality": ("text",)}).load(PluginValues(), check)


def measured(
    model: LoadedModel, other: LoadedModel | None, ids: list[int], context: int, stride: int
) -> dict[str, Any]:
    """The measured figures with the settings that they hold for. Shows a progress bar."""
    from gemma4_core.checkpoint.progress import progress
    from gemma4_plugins.commands.perplexity.scoring import figures, score

    with progress(len(ids) - 1, "predicting", "tok") as bar:
        scores = score(model, ids, context, stride, other, bar.update)
    return {"context": context, "stride": stride, "device": model.device_name, **figures(scores)}


def report_text(report: dict[str, Any]) -> str:
    """The report as text."""
    r = report
    kl = {name: f"{r['kl_divergence' + name]:.6f}" for name in ("", "_error", "_median", "_99", "_max")
          if r["against"] is not None}
    found = [
        f"perplexity      {r['perplexity']:.4f} ± {r['perplexity_error']:.4f}",
        f"mean NLL        {r['mean_nll']:.5f} ± {r['mean_nll_error']:.5f} nats over {r['scored']} tokens",
        f"windows         {r['context']} tokens, {r['stride']} of them new",
    ]
    if r["against"] is not None:
        found += [
            f"against         {r['against']}",
            f"its perplexity  {r['against_perplexity']:.4f} ± {r['against_perplexity_error']:.4f}",
            f"NLL change      {r['nll_change']:+.6f} ± {r['nll_change_error']:.6f} nats",
            f"KL divergence   {kl['']} ± {kl['_error']} nats, median {kl['_median']}, 99 % below {kl['_99']}, "
            f"largest {kl['_max']}",
            f"same top token  {100 * r['top1_agreement']:.2f} ± {100 * r['top1_agreement_error']:.2f} %",
        ]
    return "".join(f"{line}\n" for line in found)
