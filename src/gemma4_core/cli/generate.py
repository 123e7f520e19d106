"""``gemma4 generate``: answer one prompt."""

from __future__ import annotations

from typing import Any

import click

from gemma4_core.cli.options import TokenIds, device_options, loading_options, model_option, sampling_options
from gemma4_core.cli.output import Printer, json_text, note, on_terminal, show_all, stats_line, write
from gemma4_core.cli.plugin_options import PluginOptionsCommand, PluginValues
from gemma4_core.cli.prompt import taken_prompt
from gemma4_core.cli.request import Loading, sampling


@click.command("generate", cls=PluginOptionsCommand)
@model_option
@click.option("--prompt", "-p", metavar="TEXT", help="What to ask; - reads standard input.")
@click.option("--prompt-tokens", type=TokenIds(), metavar="IDS",
              help="Token ids such as 2,106,1234, in place of --prompt; needs no tokenizer.")
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@click.option("--tools", metavar="FILE", help="JSON file with tool declarations for the template.")
@click.option("--thinking/--no-thinking", default=False,
              help="Let the model think first; its thoughts are no part of the answer.")
@click.option("--raw", is_flag=True, help="Leave the chat template out.")
@click.option("--allow-urls", is_flag=True, help="Fetch media given as URLs.")
@sampling_options
@device_options
@loading_options
@click.option("--json", "as_json", is_flag=True,
              help="Print one JSON object: text, tokens, finish_reason, prompt_tokens, stats.")
@click.option("--stats/--no-stats", default=None, help="Statistics on stderr. Default: on a terminal.")
def generate_command(as_json: bool, stats: bool | None, plugin_values: PluginValues, **values: Any) -> None:
    """Answer one prompt.

    \b
    gemma4 generate -m e2b-it --prompt "Write a haiku about tinygrad."
    gemma4 generate -m ./checkpoint --prompt "Describe <|image|>." --image photo.png
    gemma4 generate -m ./checkpoint --prompt-tokens 2,106,1234 --max-new-tokens 16 --json
    cat report.txt | gemma4 generate -m e2b-it --prompt - --system "Summarise in one sentence."

    The prompt goes through the folder's chat template where it has one. stdout carries the answer and nothing else.
    """
    from gemma4_core.text import has_text

    prompt, loading = taken_prompt(values, plugin_values), Loading.taken_from(values)
    stop = values["stop"]
    model = loading.load(plugin_values, lambda processor: prompt.check(processor, loading.context, stop))
    textless = not has_text(model.tokenizer)
    asked = prompt.arguments(model.template, model.context) | sampling(model.generation_config, values)
    parts = model.stream_generate(max_new_tokens=values["max_new_tokens"], stop=stop, **asked)
    printer = None if as_json else Printer(textless)
    try:
        answer = show_all(parts, printer)
    except KeyboardInterrupt:
        if printer is not None:
            printer.end()
        raise
    if as_json:
        write(json_text(answer.as_json(textless)) + "\n")
    if answer.stats is not None and (on_terminal() if stats is None else stats):
        note(stats_line(answer.stats, answer.finish_reason))
