"""The prompt of ``gemma4 generate``: read from the command line, checked and prepared before weights are read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.base import prefer_typed
from gemma4_core.cli.options import clipped
from gemma4_core.errors import InputError
from gemma4_plugins.commands.model_loading import model_name
from gemma4_plugins.commands.text_input import checked_text, read_standard_input, read_text_file, read_tools

if TYPE_CHECKING:
    from gemma4_core.cli.plugin_options import PluginValues
    from gemma4_core.contracts import Context
    from gemma4_core.processing.inputs import PreparedInputs
    from gemma4_core.processing.processor import GemmaMultimodalProcessor


@dataclass(frozen=True)
class Prompt:
    """A prompt: text or token ids, with media and what the chat template takes."""

    text: str | None
    tokens: Sequence[int] | None
    media: Mapping[str, Any]
    """Media by argument of ``prepare_inputs``."""
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    thinking: bool = False
    raw: bool = False
    literal: bool = False

    def prepared(self, processor: GemmaMultimodalProcessor, context: int | None, stop: Sequence[str]) -> PreparedInputs:
        """Check the prompt against the checkpoint and prepare it: ids and features.

        Args:
            processor: that of the checkpoint folder.
            context: ``--context``, None for the config's.
            stop: stop strings.

        Raises:
            InputError, TokenizerError: text without a tokenizer, ids outside the vocabulary, media that cannot be read
                or do not match, more tokens than the context holds, and options that need a chat template.
        """
        from gemma4_core.processing.inputs import PreparedInputs
        from gemma4_core.text import StopStrings, has_text

        config = processor.context.config
        assert config is not None
        StopStrings(stop)
        if not has_text(processor.tokenizer.inner) and (self.tokens is None or stop):
            what = f"the prompt {str(self.text)[:80]!r}" if self.tokens is None else f"--stop {stop[0][:80]!r}"
            where = model_name(processor.context)
            raise InputError(f"{what} needs a tokenizer, and {where} is opened without one; give --prompt-tokens")
        if self.tokens is None:
            found = self._rendered(processor)
        else:
            check_vocabulary(self.tokens, config.text_config.vocab_size, processor.context)
            ids = list(self.tokens)
            found = processor.prepare_inputs(ids, **self.media) if self.media else PreparedInputs(ids)
        count, longest = len(found.input_ids), config.text_config.max_position_embeddings
        limit = min(context or longest, longest)
        if count > limit:
            hint = "raise --context or shorten it" if limit < longest else "shorten it"
            raise InputError(f"the prompt has {count} tokens, {count - limit} more than the context of {limit}: {hint}")
        return found

    def _rendered(self, processor: GemmaMultimodalProcessor) -> PreparedInputs:
        """A prompt of text, through the chat template where there is one and ``--raw`` was not given."""
        if processor.template is not None and not self.raw:
            messages = [{"role": "system", "content": self.system}] if self.system else []
            messages.append({"role": "user", "content": self.text or ""})
            return processor.prepare_inputs(
                messages, tools=self.tools, thinking=self.thinking, literal=self.literal, **self.media
            )
        why = "--raw leaves it out" if self.raw else f"{model_name(processor.context)} has none"
        for option, value in (("--system", self.system), ("--tools", self.tools), ("--thinking", self.thinking)):
            if value:
                raise InputError(f"{option} needs the chat template, and {why}")
        return processor.prepare_inputs(self.text or "", literal=self.literal, **self.media)


def check_vocabulary(ids: Sequence[int], size: int, context: Context) -> None:
    """Raise InputError naming the first id that the vocabulary does not have."""
    for token in ids:
        if not 0 <= token < size:
            where = f"the vocabulary of {model_name(context)} has {size} ids, 0 to {size - 1}"
            raise InputError(f"--prompt-tokens {token}: {where}")


NONE_GIVEN = "Give exactly one prompt, as an argument, --prompt, -f or --prompt-tokens: none was given."


def prompt_from_options(values: dict[str, Any], plugins: PluginValues) -> Prompt:
    """The prompt among a command's parameters, which is removed from ``values``; without one, what a pipe brings.

    Raises UsageError unless there is exactly one prompt, InputError where it is empty or not UTF-8.
    """
    names = ("words", "prompt", "file", "prompt_tokens")
    prefer_typed(click.get_current_context(), values, *names)
    words, option, file, tokens = (values.pop(name) for name in names)
    system, tools = values.pop("system"), values.pop("tools")
    if len(words) > 1:
        raise click.UsageError(f"{len(words)} prompts were given ({clipped(words[0], 40)}, {clipped(words[1], 40)}, "
                               "…): put the prompt in quotes.")
    argument = words[0] if words else None
    sources = {"the argument": argument, "--prompt": option, "-f": file, "--prompt-tokens": tokens}
    given = [f"{label} {clipped(value, 40)}" for label, value in sources.items() if value is not None]
    if not given:
        argument = prompt_among_media(plugins)
    if len(given) > 1:
        raise click.UsageError(f"Give exactly one prompt, not both {' and '.join(given)}.")
    text = argument if argument is not None else option
    readers = [plugins.flags[keyword] for keyword, files in plugins.media.items() for name in files if name == "-"]
    piped = text is None and file is None and tokens is None and not readers and not sys.stdin.isatty()
    label = "--prompt" if option is not None else f"-f {file}" if file is not None else "the prompt"
    readers += [label] if "-" in (text, file) else []
    if len(readers) > 1:
        raise click.UsageError(f"Standard input (-) can be read once: {' and '.join(readers)} want it.")
    flags = {name: values.pop(name) for name in ("thinking", "raw", "literal")}
    prompt = Prompt(None, tokens, plugins.media, system, **flags)
    if tokens is not None:
        for name, value in (
            ("--system", system), ("--tools", tools), ("--thinking", prompt.thinking), ("--literal", prompt.literal),
        ):
            if value:
                raise click.UsageError(f"{name} needs a prompt of text, not --prompt-tokens.")
        if not tokens:
            raise InputError("--prompt-tokens '': the prompt is empty; give ids such as 2,106,1234")
        return prompt
    text = read_prompt(text, file, piped, label)
    empty = not (text if prompt.raw else text.strip())
    if empty and piped:
        raise click.UsageError(NONE_GIVEN)
    if empty and not plugins.media:
        raise InputError(f"{label} {text[:20]!r}: the prompt is empty; give some text")
    if system is not None:
        checked_text("--system", system)
    return replace(prompt, text=text, tools=read_tools(tools) if tools else None)


def read_prompt(text: str | None, file: str | None, piped: bool, label: str) -> str:
    """The prompt's text: as typed, or from a file or standard input. Raises UsageError where there is none."""
    if piped or "-" in (text, file):
        return read_standard_input()
    if file is not None:
        return read_text_file("-f", file)
    if text is None:
        raise click.UsageError(NONE_GIVEN)
    return checked_text(label, text)


def prompt_among_media(plugins: PluginValues) -> str | None:
    """The prompt that stands behind the files of a media option: ``--image a.png "What is this?"``.

    A media option takes all values that follow it. The last one is the prompt where it holds white space and is
    neither a file nor a URL; it is removed from the files.
    """
    for files in plugins.media.values():
        last = files[-1]
        if len(files) > 1 and any(map(str.isspace, last)) and "://" not in last and not is_file(last):
            return files.pop()
    return None


def is_file(path: str) -> bool:
    """Whether a file or folder of this name exists; False for a text that cannot be a path."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
