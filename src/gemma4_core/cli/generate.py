"""``gemma4 generate``: answer one prompt."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.options import TokenIds, device_options, loading_options, model_option, sampling_options
from gemma4_core.cli.output import Printer, json_text, note, on_terminal, show_all, stats_line
from gemma4_core.cli.plugin_options import PluginOptionsCommand, PluginValues
from gemma4_core.cli.request import Loading, checked_text, needs_template, read_standard_input, read_tools, sampling
from gemma4_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gemma4_core.generation.stream import Part
    from gemma4_core.model import GemmaModel

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@dataclass(frozen=True)
class Prompt:
    """What is asked: text, or token ids."""

    text: str | None
    tokens: Sequence[int] | None
    system: str | None = None
    tools: str | None = None
    """Path of a JSON file."""
    thinking: bool = False
    raw: bool = False


def taken_prompt(values: dict[str, Any], plugins: PluginValues) -> Prompt:
    """Take the prompt out of a command's parameters.

    Raises UsageError unless there is exactly one, InputError for an empty one or one that is not text.
    """
    text, tokens = values.pop("prompt"), values.pop("prompt_tokens")
    if (text is None) == (tokens is None):
        which = "neither was given" if text is None else "both were given"
        raise click.UsageError(f"Give exactly one of --prompt and --prompt-tokens: {which}.")
    prompt = Prompt(text, tokens, values.pop("system"), values.pop("tools"), values.pop("thinking"), values.pop("raw"))
    if tokens is not None:
        return _checked_tokens(prompt, plugins)
    text = read_standard_input() if text == "-" else checked_text("--prompt", text)
    if not (text if prompt.raw else text.strip()) and not plugins.media:
        raise InputError(f"--prompt {text[:20]!r}: the prompt is empty; give some text")
    if prompt.system is not None:
        checked_text("--system", prompt.system)
    return Prompt(text, None, prompt.system, prompt.tools, prompt.thinking, prompt.raw)


def _checked_tokens(prompt: Prompt, plugins: PluginValues) -> Prompt:
    if not prompt.tokens:
        raise InputError("--prompt-tokens '': the prompt is empty; give ids such as 2,106,1234")
    given: dict[str, Any] = {"--system": prompt.system, "--tools": prompt.tools, "--thinking": prompt.thinking}
    given |= {plugins.flags[keyword]: files for keyword, files in plugins.media.items()}
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} goes with --prompt, not with --prompt-tokens.")
    return prompt


def answer_parts(model: GemmaModel, prompt: Prompt, plugins: PluginValues, given: dict[str, Any]) -> Iterator[Part]:
    """The answer part by part. Raises InputError and the like before anything runs."""
    wanted = sampling(model.generation_config, {name: given[name] for name in SAMPLING})
    wanted |= {"max_new_tokens": given["max_new_tokens"], "stop": given["stop"]}
    if prompt.tokens is not None:
        return model.stream_generate(prompt_tokens=prompt.tokens, **wanted)
    assert prompt.text is not None
    wanted |= plugins.media
    options = {"system": prompt.system, "tools": prompt.tools, "thinking": prompt.thinking}
    if not needs_template(model, prompt.raw, **options):
        return model.stream_generate(prompt.text, **wanted)
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append({"role": "user", "content": prompt.text})
    tools = read_tools(prompt.tools) if prompt.tools else None
    return model.stream_generate(messages, tools=tools, thinking=prompt.thinking, **wanted)


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

    prompt = taken_prompt(values, plugin_values)
    model = Loading.taken_from(values).load(plugin_values)
    textless = not has_text(model.tokenizer)
    parts = answer_parts(model, prompt, plugin_values, values)
    printer = None if as_json else Printer(textless)
    try:
        answer = show_all(parts, printer)
    except KeyboardInterrupt:
        if printer is not None:
            printer.end()
        raise
    if as_json:
        print(json_text(answer.as_json(textless)))
    sys.stdout.flush()
    if answer.stats is not None and (on_terminal() if stats is None else stats):
        note(stats_line(answer.stats, answer.finish_reason))
