"""Answer one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.answers import Printer, answer_json, show_all, stats_line
from gemma4_core.cli.completion import files
from gemma4_core.cli.options import (
    TokenIds,
    Whole,
    device_options,
    literal_option,
    loading_options,
    model_option,
    sampling_options,
    schema_option,
    tools_option,
    verbosity_options,
)
from gemma4_core.cli.output import json_text, note, on_terminal, write
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_core.console import console
from gemma4_core.openai import sampling
from gemma4_plugins.commands.media_options import MediaCommand
from gemma4_plugins.commands.model_loading import Loading, model_line
from gemma4_plugins.commands.prompt import prompt_from_options
from gemma4_plugins.commands.text_input import read_schema

if TYPE_CHECKING:
    from gemma4_core.processing.inputs import PreparedInputs


@click.command("generate", cls=MediaCommand)
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@model_option()
@click.option("--prompt", "-p", metavar="TEXT", help="The prompt as an option; - reads standard input.")
@click.option("--file", "-f", metavar="FILE", shell_complete=files, help="Read the prompt from a file.")
@click.option("--prompt-tokens", type=TokenIds(), metavar="IDS",
              help="Token ids such as 2,106,1234 as the prompt; needs no tokenizer.")
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@tools_option
@schema_option
@click.option("--thinking/--no-thinking", default=False,
              help="Let the model think first; its thoughts are not part of the answer.")
@click.option("--raw", is_flag=True, help="Do not apply the chat template.")
@literal_option
@click.option("--allow-urls", is_flag=True, help="Fetch media given as URLs.")
@sampling_options
@device_options
@loading_options
@click.option("--json", "as_json", is_flag=True,
              help="Print one JSON object: text, tokens, finish_reason, prompt_tokens, stats.")
@click.option("--top-logprobs", type=Whole(0, 20), default=None, metavar="N",
              help="With --json: the log-probabilities of the N likeliest ids at each token, and the chosen one's.")
@click.option("--stream/--no-stream", default=True, show_default=True,
              help="Print the answer as it comes, or all at once at its end.")
@click.option("--stats/--no-stats", default=None, help="Statistics on stderr. Default: on a terminal.")
@verbosity_options
def generate_command(
    as_json: bool, stats: bool | None, stream: bool, quiet: bool, verbose: bool, plugin_values: PluginValues,
    **values: Any,
) -> None:
    """Answer one prompt.

    \b
    gemma4 generate -m e2b-it "Write a haiku about tinygrad."
    gemma4 generate -m ./checkpoint "Describe <|image|>." --image photo.png
    gemma4 generate -m ./checkpoint --prompt-tokens 2,106,1234 --max-new-tokens 16 --json
    cat report.txt | gemma4 generate -m e2b-it --system "Summarise in one sentence."

    The prompt is an argument, --prompt, a file (-f), a pipe, or token ids. It goes through the folder's chat template
    where it has one. stdout carries the answer and nothing else.
    """
    with console.configured(quiet):
        generate(as_json, verbose if stats is None and verbose else stats, stream, verbose, plugin_values, values)


def generate(
    as_json: bool, stats: bool | None, stream: bool, verbose: bool, plugin_values: PluginValues,
    values: dict[str, Any],
) -> None:
    """Generate and print an answer. ``stats`` None prints statistics where stderr is a terminal."""
    from gemma4_core.text import has_text, render_process

    top = values.pop("top_logprobs")
    if top is not None and not as_json:
        raise click.UsageError(f"--top-logprobs {top} needs --json.")
    constraint = read_schema(values.pop("schema"))
    prompt, loading = prompt_from_options(values, plugin_values), Loading.from_options(values)
    if prompt.text is not None and not prompt.raw:
        render_process.start()  # it gets ready while tinygrad is imported
    stop = values["stop"]
    prepared: list[PreparedInputs] = []
    model = loading.load(
        plugin_values, lambda found: prepared.append(prompt.prepared(found, loading.context, stop)), values["draft"],
        constraint,
    )
    if verbose:
        note(model_line(model))
    textless = not has_text(model.tokenizer)
    chosen = sampling(model.generation_config, values) | ({"top_logprobs": top} if top else {})
    parts = model.stream_generate(
        prepared[0], values["max_new_tokens"], stop=stop, tools=prompt.tools, thinking=prompt.thinking,
        constraint=constraint, **chosen,
    )
    printer = None if as_json else Printer(textless, stream)
    try:
        answer = show_all(parts, printer)
    except KeyboardInterrupt:
        if printer is not None:
            printer.end()
        raise
    if as_json:
        write(json_text(answer_json(answer, textless, top is not None)) + "\n")
    if answer.stats is not None and (on_terminal() if stats is None else stats):
        note(stats_line(answer.stats, answer.finish_reason))
