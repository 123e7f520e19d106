"""The prompt of ``gemma4 generate``: taken from the command line and checked before weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from gemma4_core.cli.request import checked_text, folder, read_standard_input, read_tools
from gemma4_core.errors import InputError

if TYPE_CHECKING:
    from gemma4_core.cli.plugin_options import PluginValues
    from gemma4_core.descriptions import Context
    from gemma4_core.processor import GemmaMultimodalProcessor
    from gemma4_core.text import ChatTemplate


@dataclass(frozen=True)
class Prompt:
    """What is asked: text, or token ids, with media."""

    text: str | None
    tokens: Sequence[int] | None
    media: Mapping[str, list[str]]
    """Media by argument of ``stream_generate``."""
    system: str | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    thinking: bool = False
    raw: bool = False

    def arguments(self, template: ChatTemplate | None, context: Context) -> dict[str, Any]:
        """What ``stream_generate`` and ``prepare_inputs`` are asked, prompt and media.

        Raises InputError for options that only a chat template serves, where none is used.
        """
        if self.tokens is not None:
            return {"prompt_tokens": list(self.tokens), **self.media}
        if template is not None and not self.raw:
            messages = [{"role": "system", "content": self.system}] if self.system else []
            messages.append({"role": "user", "content": self.text or ""})
            asked = {"prompt_or_messages": messages, "tools": self.tools, "thinking": self.thinking}
            return {**asked, **self.media}
        why = "--raw leaves it out" if self.raw else f"{folder(context)} has none"
        for option, value in (("--system", self.system), ("--tools", self.tools), ("--thinking", self.thinking)):
            if value:
                raise InputError(f"{option} needs the chat template, and {why}")
        return {"prompt_or_messages": self.text, **self.media}

    def check(self, processor: GemmaMultimodalProcessor, context: int | None, stop: Sequence[str]) -> None:
        """Look for everything that can be wrong with it. Raises InputError and TokenizerError.

        Args:
            processor: that of the checkpoint folder.
            context: ``--context``, None for the config's.
            stop: stop strings.
        """
        from gemma4_core.text import StopStrings, has_text

        config = processor.context.config
        assert config is not None
        StopStrings(stop)
        if not has_text(processor.tokenizer.inner) and (self.tokens is None or stop):
            what = f"--prompt {str(self.text)[:80]!r}" if self.tokens is None else f"--stop {stop[0][:80]!r}"
            where = folder(processor.context)
            raise InputError(f"{what} needs a tokenizer, and {where} is opened without one; give --prompt-tokens")
        asked = self.arguments(processor.template, processor.context)
        ids = asked.pop("prompt_tokens", None)
        check_vocabulary(ids or [], config.text_config.vocab_size, processor.context)
        if ids is None or self.media:
            ids = processor.prepare_inputs(asked.pop("prompt_or_messages", ids), **asked).input_ids
        longest = config.text_config.max_position_embeddings
        limit = min(context or longest, longest)
        if len(ids) > limit:
            hint = "raise --context or shorten it" if limit < longest else "shorten it"
            over = f"{len(ids) - limit} more than the context of {limit}"
            raise InputError(f"the prompt has {len(ids)} tokens, {over}: {hint}")


def check_vocabulary(ids: Sequence[int], size: int, context: Context) -> None:
    """Raise InputError naming the first id that the vocabulary does not have."""
    for token in ids:
        if not 0 <= token < size:
            where = f"the vocabulary of {folder(context)} has {size} ids, 0 to {size - 1}"
            raise InputError(f"--prompt-tokens {token}: {where}")


def taken_prompt(values: dict[str, Any], plugins: PluginValues) -> Prompt:
    """Take the prompt out of a command's parameters.

    Raises UsageError unless there is exactly one, InputError for an empty one or one that is not text.
    """
    text, tokens = values.pop("prompt"), values.pop("prompt_tokens")
    system, tools = values.pop("system"), values.pop("tools")
    if (text is None) == (tokens is None):
        which = "neither was given" if text is None else "both were given"
        raise click.UsageError(f"Give exactly one of --prompt and --prompt-tokens: {which}.")
    readers = [plugins.flags[keyword] for keyword, files in plugins.media.items() for file in files if file == "-"]
    readers += ["--prompt"] if text == "-" else []
    if len(readers) > 1:
        raise click.UsageError(f"Standard input (-) can be read once: {' and '.join(readers)} want it.")
    prompt = Prompt(text, tokens, plugins.media, system, None, values.pop("thinking"), values.pop("raw"))
    if tokens is not None:
        for option, value in (("--system", system), ("--tools", tools), ("--thinking", prompt.thinking)):
            if value:
                raise click.UsageError(f"{option} goes with --prompt, not with --prompt-tokens.")
        if not tokens:
            raise InputError("--prompt-tokens '': the prompt is empty; give ids such as 2,106,1234")
        return prompt
    text = read_standard_input() if text == "-" else checked_text("--prompt", text)
    if not (text if prompt.raw else text.strip()) and not plugins.media:
        raise InputError(f"--prompt {text[:20]!r}: the prompt is empty; give some text")
    if system is not None:
        checked_text("--system", system)
    return replace(prompt, text=text, tools=read_tools(tools) if tools else None)
