"""A conversation in the terminal: messages, the files that go with them, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import InputError
from gemma4_core.generation.answers import Answer
from gemma4_core.generation.chat import Chat
from gemma4_plugins.commands.model_loading import model_name

ROLES = ("system", "developer", "user", "assistant", "tool")
CONVERSATION_LIMIT = 64 << 20
"""Bytes of a saved conversation."""

if TYPE_CHECKING:
    from gemma4_core.contracts import ModalityTower
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.generation.parts import Part, Stats


class Conversation(Chat):
    """A chat whose files wait for the next message, and which can be saved and loaded."""

    def __init__(
        self, model: LoadedModel, options: Mapping[str, Any], system: str | None = None, thinking: bool = False,
        tools: Any = None,
    ) -> None:
        """``options`` are keyword options of ``stream_generate``, such as sampling."""
        super().__init__(model, system, thinking=thinking, tools=tools, **options)
        self.waiting: list[tuple[str, str]] = []
        """Files that go with the next message: kind, such as ``image``, and path."""
        self.stats: Stats | None = None
        self.finish_reason: str | None = None

    def towers(self) -> dict[str, ModalityTower]:
        """Loaded towers by the command that attaches a medium, such as ``image``."""
        return {spec.media_option.flag.lstrip("-"): spec for spec in self.model.tower_specs}

    def attach(self, kind: str, path: str) -> None:
        """Attach a file to the next message. Raises InputError where the file or a tower for it is missing."""
        tower = self.towers().get(kind)
        if tower is None:
            raise InputError(f"/{kind} {path}: this model is loaded without a tower for it")
        if not path:
            raise InputError(f"/{kind}: give the path of a file")
        file = Path(path).expanduser()
        if not file.exists():
            raise InputError(f"/{kind} {path}: no such file")
        self.waiting.append((kind, str(file)))

    def ask(self, text: str, answer: Answer) -> Generator[Part, None, None]:
        """Yield the answer to a message, collecting it in ``answer``; afterwards call ``keep`` or ``drop``."""
        self.turns.append({"role": "user", "content": self._content(text)})
        self.waiting = []
        return self.parts(answer)

    def ask_again(self, answer: Answer) -> Generator[Part, None, None]:
        """Yield another answer to the last message in place of the one before; see ``ask``."""
        del self.turns[self.last_question("/regenerate") + 1 :]
        return self.parts(answer)

    def _content(self, text: str) -> str | list[dict[str, Any]]:
        """A message with its files: in place of its placeholders, else before or after the text.

        Raises InputError where the numbers of placeholders and files differ.
        """
        if not self.waiting:
            return text
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text.strip() else []
        for kind, tower in self.towers().items():
            files = [{"type": kind, "path": path} for of, path in self.waiting if of == kind]
            holders = text.count(tower.placeholder)
            if holders and holders != len(files):
                raise InputError(f"the message has {holders} {tower.placeholder}, but {len(files)} files are attached")
            if holders:
                parts = [piece for part in parts for piece in _filled(part, tower.placeholder, files)]
            else:
                parts = [*files, *parts] if tower.placed == "before" else [*parts, *files]
        return parts

    def keep(self, answer: Answer) -> None:
        """Add the answer to the conversation, also one that was cut off."""
        self.stats, self.finish_reason = answer.stats or self.stats, answer.finish_reason
        super().keep(answer)

    def drop(self) -> None:
        """Remove a message that could not be answered. Its files, which may be the reason, are detached."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()
        self.waiting = []

    def clear(self) -> None:
        """Start over with the same system prompt."""
        super().clear()
        self.waiting = []

    def save(self, path: str) -> None:
        """Write the messages as JSON, whole or not at all. Raises a Gemma4Error naming the file."""
        from gemma4_core.checkpoint.atomic import atomic_file

        content = {"model": model_name(self.model.context), "messages": self.messages}
        with atomic_file(Path(path).expanduser(), "w") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")

    def load(self, path: str) -> None:
        """Continue a conversation that ``save`` wrote. Raises InputError naming the file; then nothing changes."""
        messages = read_messages(Path(path).expanduser())
        first = messages[0] if messages else {}
        system = first["content"] if first.get("role") == "system" and isinstance(first["content"], str) else None
        self.system, self.turns, self.waiting = system, messages[1:] if system is not None else messages, []
        self.cache.reset()


def read_messages(path: Path) -> list[dict[str, Any]]:
    """The messages of a saved conversation: an object with ``messages``, or a list of them. Raises InputError."""
    from gemma4_core.config.files import read_bytes

    try:
        found = json.loads(read_bytes(path, CONVERSATION_LIMIT, InputError).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file: {error}") from error
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(messages, list):
        raise InputError(f"{path}: an object with messages is expected, as /save writes it")
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list) or message.get("role") not in ROLES \
                or not all(isinstance(part, dict) for part in parts):
            raise InputError(f"{path}: messages[{number}] is not a message with role and content")
    return messages


def _filled(part: dict[str, Any], placeholder: str, files: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A text part cut at its placeholders, with the files in their places; other parts as they are."""
    if part["type"] != "text":
        yield part
        return
    for index, text in enumerate(part["text"].split(placeholder)):
        if index:
            yield files.pop(0)
        if text:
            yield {"type": "text", "text": text}
