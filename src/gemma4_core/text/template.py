"""The checkpoint's own chat template: messages to prompt text."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gemma4_core.config.files import read_bytes, read_json, shown, shown_path
from gemma4_core.errors import TokenizerError
from gemma4_core.text.messages import plain_data, template_messages, template_tools
from gemma4_core.text.pieces import checked_text
from gemma4_core.text.settings import TokenizerSettings, template_texts

if TYPE_CHECKING:
    from jinja2 import Template

    from gemma4_core.text.sandbox import ChatEnvironment

SIZE_LIMIT = 1 << 20
"""Bytes; released templates have 12 to 20 thousand."""


class ChatTemplate:
    """A folder's chat template, one text or several by name."""

    def __init__(self, texts: Mapping[str, str], path: Path, named_tokens: Mapping[str, str]) -> None:
        self.path = path
        """The file that the template is from."""
        self.texts = dict(texts)
        self.named_tokens = dict(named_tokens)
        """Special tokens that the template sees, such as ``bos_token``."""
        self._compiled: dict[str, Template] = {}
        self._environment: ChatEnvironment | None = None
        self._lock = threading.Lock()

    @staticmethod
    def load(folder: Path | None) -> ChatTemplate | None:
        """The template of chat_template.jinja, chat_template.json or tokenizer_config.json, the first there is.

        None where the folder has none. Raises TokenizerError for a file that cannot be read.
        """
        if folder is None:
            return None
        settings = TokenizerSettings.load(folder)
        own, old = folder / "chat_template.jinja", folder / "chat_template.json"
        if own.exists():
            texts, path = {"default": _read(own)}, own
        elif old.exists():
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
        messages, or goes beyond the limits of ``gemma4_core.text.sandbox``.
        """
        values = plain_data({"documents": None, **self.named_tokens, "enable_thinking": thinking, **variables})
        values |= {"messages": template_messages(messages), "tools": template_tools(tools)}
        with self._lock:
            try:
                text = self._prepared(self._choose(tools)).render(
                    values, add_generation_prompt=add_generation_prompt
                )
            except TokenizerError:
                raise
            except (Exception, RecursionError) as fault:
                self._fail(fault)
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

    def _prepared(self, name: str) -> Template:
        from gemma4_core.text.sandbox import ChatEnvironment, Limits

        if self._environment is None:
            self._environment = ChatEnvironment()
        self._environment.limits = Limits()
        if name not in self._compiled:
            self._compiled[name] = self._environment.prepared(self.texts[name])
        return self._compiled[name]

    def _fail(self, fault: BaseException) -> NoReturn:
        """Raise a jinja2 or Python fault as one line that names the file and the template's line."""
        from jinja2.exceptions import SecurityError, TemplateSyntaxError

        from gemma4_core.text.sandbox import Refusal, TemplateLimit

        lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == "<template>"]
        line = fault.lineno if isinstance(fault, TemplateSyntaxError) else lines[-1] if lines else None
        where = shown_path(self.path) + (f" line {line}" if line else "")
        what = shown(str(fault), 200)
        if isinstance(fault, Refusal):
            said = f"the chat template refuses these messages: {what}"
        elif isinstance(fault, TemplateLimit):
            said = f"the chat template was stopped: {fault}"
        elif isinstance(fault, SecurityError):
            said = f"the chat template tries to leave its sandbox: {what}"
        elif isinstance(fault, TemplateSyntaxError):
            said = f"the chat template is not valid jinja: {what}"
        elif isinstance(fault, RecursionError):
            said = "the chat template calls itself without end or is nested too deeply"
        else:
            said = f"the chat template failed: {type(fault).__name__}: {what}"
        raise TokenizerError(f"{where}: {said}; --raw does without the template") from fault


def _read(path: Path) -> str:
    data = read_bytes(path, SIZE_LIMIT, TokenizerError)
    try:
        return data.decode()
    except UnicodeDecodeError as fault:
        raise TokenizerError(
            f"{shown_path(path)} is not UTF-8 text (byte {fault.start}); fetch the file again"
        ) from fault
