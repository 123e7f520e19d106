"""The checkpoint's own chat template: messages to prompt text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma4_core.config.files import read_bytes, read_json
from gemma4_core.contracts import Context, SideFile
from gemma4_core.errors import InputError, TokenizerError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.text import render_process
from gemma4_core.text.byte_tokens import checked_text
from gemma4_core.text.messages import (
    SYSTEM_ROLES,
    TOO_DEEP,
    plain_data,
    template_messages,
)
from gemma4_core.text.settings import TokenizerSettings, template_texts
from gemma4_core.text.tools import tool_declarations

SIZE_LIMIT = 1 << 20
"""Bytes; released templates have 12 to 20 thousand."""


class ChatTemplate:
    """A folder's chat template, one text or several by name."""

    def __init__(self, texts: Mapping[str, str], path: Path | SideFile, named_tokens: Mapping[str, str]) -> None:
        self.path = path
        """The file that the template is from."""
        self.texts = {name: text.removeprefix("\ufeff") for name, text in texts.items()}
        self.named_tokens = dict(named_tokens)
        """Special tokens that the template sees, such as ``bos_token``."""
        self.seconds = render_process.SECONDS
        """How long one rendering may take."""
        self._system_parts: dict[str, bool] = {}

    @staticmethod
    def load(checkpoint: Context | Path | None) -> ChatTemplate | None:
        """The template of chat_template.jinja, chat_template.json or tokenizer_config.json, the first there is.

        None where the checkpoint has none. Raises TokenizerError for a file that cannot be read.
        """
        if checkpoint is None:
            return None
        context = checkpoint if isinstance(checkpoint, Context) else Context(checkpoint)
        settings = TokenizerSettings.load(context)
        own, old = context.file("chat_template.jinja"), context.file("chat_template.json")
        path: Path | SideFile
        if own is not None:
            texts, path = {"default": _read(own)}, own
        elif old is not None:
            texts, path = template_texts(read_json(old, error=TokenizerError).get("chat_template"), old), old
        else:
            texts, path = dict(settings.templates), settings.path
        for text in texts.values():
            if len(text) > SIZE_LIMIT:
                raise TokenizerError(f"{shown_path(path)}: the chat template is longer than {SIZE_LIMIT} characters")
        return ChatTemplate(texts, path, settings.named) if texts else None

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True, thinking: bool = False, **variables: Any,
    ) -> str:
        """The prompt text of a conversation, special tokens written out, BOS included where the template does so.

        ``thinking`` is the template's ``enable_thinking``; ``variables`` are further ones that it may know. Raises
        InputError for messages and tools of a wrong shape, TokenizerError for a template that fails, refuses the
        messages, or goes beyond the limits of ``gemma4_core.text.render_process``.
        """
        values = plain_data({"documents": None, **self.named_tokens, "enable_thinking": thinking, **variables})
        values |= {"tools": tool_declarations(tools), "add_generation_prompt": add_generation_prompt}
        name = self._choose(tools)
        values["messages"] = self._with_system_text(name, template_messages(messages))
        try:
            text = render_process.render(self.texts[name], values, self.seconds)
        except render_process.RenderFault as fault:
            raise TokenizerError(self._said(fault)) from fault
        except ValueError:
            raise InputError(TOO_DEEP) from None
        if not text.strip():
            raise TokenizerError(f"{shown_path(self.path)}: the chat template writes nothing for these messages")
        return checked_text(text)

    def _choose(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """The name of the text to use; one named ``tool_use`` serves conversations with tools."""
        name = "tool_use" if tools is not None and "tool_use" in self.texts else "default"
        if name not in self.texts:
            raise TokenizerError(
                f"{shown_path(self.path)}: chat_template has no 'default' among {', '.join(map(shown, self.texts))}"
            )
        return name

    def _with_system_text(self, name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages whose system parts are one text, for a template that would write the list itself."""
        strange = [m for m in messages if m["role"] in SYSTEM_ROLES and not isinstance(m.get("content"), str)]
        if not strange or self._reads_system_parts(name):
            return messages
        # as the released templates that read parts do
        return [
            m | {"content": " ".join(part["text"].strip() for part in m["content"])} if m in strange else m
            for m in messages
        ]

    def _reads_system_parts(self, name: str) -> bool:
        """Whether the template writes the text of a system message's parts, tried out once."""
        if name not in self._system_parts:
            parts = [{"type": "text", "text": "Quartz"}]
            probe = [{"role": "system", "content": parts}, {"role": "user", "content": "Basalt"}]
            values = {**self.named_tokens, "messages": probe, "tools": None, "add_generation_prompt": True}
            try:
                text = render_process.render(self.texts[name], values)
            except render_process.RenderFault:
                text = ""
            self._system_parts[name] = "Quartz" in text and not re.search("""['"]Quartz""", text)
        return self._system_parts[name]

    def _said(self, fault: render_process.RenderFault) -> str:
        """One line that names the file and the template's line."""
        what = shown(str(fault), 200)
        error, _, text = str(fault).partition(": ")
        said = {
            "refusal": f"the chat template refuses these messages: {what}",
            "limit": f"the chat template was stopped: {fault}",
            "sandbox": f"the chat template tries to leave its sandbox: {what}",
            "syntax": f"the chat template is not valid jinja: {what}",
            "recursion": "the chat template calls itself without end or is nested too deeply",
            "process": f"the chat template cannot be rendered: {fault}",
        }.get(fault.kind, f"the chat template failed: {error}: {shown(text, 200)}")
        where = shown_path(self.path) + (f" line {fault.line}" if fault.line else "")
        return f"{where}: {said}; --raw does without the template"


def _read(path: Path | SideFile) -> str:
    data = read_bytes(path, SIZE_LIMIT, TokenizerError)
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        raise TokenizerError(
            f"{shown_path(path)} is not UTF-8 text (byte {fault.start}); fetch the file again"
        ) from fault
