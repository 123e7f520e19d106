"""Talk with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.options import (
    device_options,
    literal_option,
    loading_options,
    model_option,
    sampling_options,
    schema_option,
    tools_option,
)
from gemma4_core.cli.output import note
from gemma4_core.cli.plugin_options import PluginValues
from gemma4_core.errors import InputError
from gemma4_core.openai import sampling
from gemma4_plugins.commands.media_options import MediaCommand
from gemma4_plugins.commands.model_loading import Loading, model_name
from gemma4_plugins.commands.text_input import checked_text, read_schema, read_tools

if TYPE_CHECKING:
    from gemma4_core.processing.processor import GemmaMultimodalProcessor


def check_talks(processor: GemmaMultimodalProcessor) -> None:
    """Raise InputError for a checkpoint that cannot hold a conversation."""
    from gemma4_core.text import has_text

    where = model_name(processor.context)
    if not has_text(processor.tokenizer.inner):
        raise InputError(f"{where} has no tokenizer: use gemma4 generate --prompt-tokens")
    if processor.template is None:
        raise InputError(f"{where} has no chat template (a base model?): use gemma4 generate, or an -it model")


@click.command("chat", cls=MediaCommand)
@model_option()
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@tools_option
@schema_option
@click.option("--thinking/--no-thinking", default=False, help="Let the model think before it answers.")
@literal_option
@click.option("--allow-urls", is_flag=True, help="Fetch media given as URLs.")
@sampling_options
@device_options
@loading_options
@click.option("--stats", is_flag=True, help="Print token counts and speeds after each answer.")
@click.option("--history/--no-history", default=True, show_default=True,
              help="Keep what was typed, in $XDG_STATE_HOME/gemma4/chat_history.")
def chat_command(
    system: str | None, tools: str | None, schema: str | None, thinking: bool, stats: bool, history: bool,
    plugin_values: PluginValues, **values: Any,
) -> None:
    """Talk with a model; it remembers the conversation.

    \b
    gemma4 chat -m e2b-it
    gemma4 chat -m ./checkpoint --system "Answer like a pirate." --temperature 0

    /help lists the commands inside. Ctrl-C stops an answer, Ctrl-D leaves. From a pipe, each line is a message.
    """
    from gemma4_plugins.commands.chat.conversation import Conversation
    from gemma4_plugins.commands.chat.line_editor import LineReader
    from gemma4_plugins.commands.chat.repl import Repl

    declared = read_tools(tools) if tools else None
    system = checked_text("--system", system) if system else None
    constraint = read_schema(schema)
    model = Loading.from_options(values).load(plugin_values, check_talks, values["draft"], constraint)
    wanted = sampling(model.generation_config, values)
    wanted |= {"max_new_tokens": values["max_new_tokens"], "stop": values["stop"], "literal": values["literal"]}
    wanted |= {"constraint": constraint} if constraint is not None else {}
    conversation = Conversation(model, wanted, system, thinking, declared)
    for keyword, files in plugin_values.media.items():
        for file in files:
            conversation.attach(plugin_values.flags[keyword].lstrip("-"), file)
    with LineReader(history) as lines:
        if lines.interactive:
            note(f"{model_name(model.context)} on {model.device_name}. /help lists commands, Ctrl-D leaves.")
        Repl(conversation, lines, stats).run()
