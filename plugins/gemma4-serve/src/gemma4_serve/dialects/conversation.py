"""Messages of a client, rebuilt: text stays text, media become bytes, anything else is refused.

Nothing that a client wrote reaches the model's processor but through here, so that no string of theirs is ever taken
for the name of a file or a URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gemma4_core import registry
from gemma4_core.formatting import shown
from gemma4_serve.errors import wrong
from gemma4_serve.security.media import MediaReader
from gemma4_serve.settings import Settings

TEXTS = ("text", "input_text", "output_text", "refusal")
"""Types of parts that are text, in all interfaces."""
REASONING = ("reasoning_content", "reasoning", "thinking")
KEYS = ("role", "name", "tool_calls", "tool_call_id")
ROLES = ("system", "developer", "user", "assistant", "tool")


async def clean_messages(given: Any, settings: Settings, modalities: tuple[str, ...]) -> list[dict[str, Any]]:
    """Messages in OpenAI's form as the processor takes them.

    Args:
        given: what the client sent.
        settings: bounds, and hosts that media may come from.
        modalities: kinds of media that the model takes.

    Raises:
        ApiError: anything but messages, media that the model lacks or that cannot be read, too many of either.
    """
    if not isinstance(given, list) or not given:
        raise wrong("messages must be a list of messages that is not empty", "messages")
    if len(given) > settings.limits.messages:
        raise wrong(f"a request holds at most {settings.limits.messages} messages", "messages")
    reader = MediaReader(settings)
    found = [await _message(message, f"messages[{number}]", reader, modalities) for number, message in enumerate(given)]
    for one, two in pairwise(found):
        if one["role"] == two["role"] == "assistant" and not (one.get("tool_calls") or two.get("tool_calls")):
            raise wrong("messages: two messages of the assistant follow each other", "messages")
    return found


async def _message(
    message: Any, where: str, reader: MediaReader, modalities: tuple[str, ...]
) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise wrong(f"{where} must be an object whose role is one of {', '.join(ROLES)}, not {shown(message, 60)}",
                    "messages")
    found = {key: message[key] for key in KEYS if message.get(key) is not None}
    content = message.get("content")
    if isinstance(content, list):
        found["content"] = [await _part(part, f"{where}.content[{number}]", reader, modalities)
                            for number, part in enumerate(content)]
    elif isinstance(content, str):
        found["content"] = content
    elif content is not None:
        raise wrong(f"{where}.content must be text or a list of parts, not {shown(content, 60)}", "messages")
    if message["role"] == "assistant":
        thoughts = next((message[key] for key in REASONING if isinstance(message.get(key), str)), None)
        if thoughts:
            found["reasoning_content"] = thoughts
        elif found.get("content") is None and not found.get("tool_calls"):
            found["content"] = ""
    if message["role"] == "tool" and "content" not in found:
        found["content"] = ""
    return found


async def _part(part: Any, where: str, reader: MediaReader, modalities: tuple[str, ...]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in TEXTS:
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise wrong(f"{where}: a text part needs text", "messages")
        return {"type": "text", "text": text}
    medium = medium_kind(kind)
    if medium is None:
        raise wrong(f"{where}: parts of type {shown(kind, 40)} are not read; known are text, "
                    f"{', '.join(modalities) or 'and nothing else'}", "messages")
    if medium not in modalities:
        raise wrong(f"{where}: this model takes no {medium}", "messages")
    return {"type": medium, medium: await reader.read(part, medium, where)}


def medium_kind(kind: Any) -> str | None:
    """The kind of medium that a part's type names, among those of installed plugins; None for none."""
    for spec in registry.modalities.values():
        own = spec.media_option.keyword
        if kind in (own, f"{own}_url", f"input_{own}"):
            return own
    return None
