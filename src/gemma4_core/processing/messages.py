"""Media inside chat messages: found, taken out in order, and put where they belong."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import InputError
from gemma4_core.processing.expand import check_counts, tag_of
from gemma4_core.processing.sources import shown

if TYPE_CHECKING:
    from gemma4_core.contracts import ModalityTower


class Open:
    """Stands for a placeholder whose medium comes from the arguments."""

    def __repr__(self) -> str:
        return "<open>"


OPEN = Open()
Message = dict[str, Any]


@dataclass
class Conversation:
    """Messages as a chat template takes them, and the media that stand in them."""

    messages: list[Message]
    media: dict[str, list[Any]] = field(default_factory=dict)
    """By modality, in order: the medium of each placeholder, or ``OPEN``."""


def kind(spec: ModalityTower) -> str:
    """The type of a modality's content parts: ``image`` for ``--image``."""
    return spec.media_option.keyword


def read_messages(
    messages: Any, specs: Sequence[ModalityTower], filled: Sequence[ModalityTower] | None = None
) -> Conversation:
    """Copy messages and take their media out. Content parts of a modality become ``{"type": kind}``.

    Placeholders in texts count as places of media. With ``filled`` only those of its modalities do, and only in users'
    messages. Raises InputError for anything but a list of messages, and for unknown parts.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InputError(f"messages: expected a list of {{'role': …, 'content': …}}, got {shown(repr(messages))}")
    talk = Conversation([])
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {number}: expected {{'role': …, 'content': …}}, got {shown(repr(message))}")
        copy = dict(message)
        content = message.get("content")
        counted = specs if filled is None else filled if message["role"] == "user" else ()
        if isinstance(content, str):
            _count(content, counted, talk)
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            copy["content"] = [_part(part, f"message {number}", specs, counted, talk) for part in content]
        elif content is not None and not isinstance(content, Mapping):
            raise InputError(f"message {number}: content is a {type(content).__name__}; give text or a list of parts")
        talk.messages.append(copy)
    return talk


def _count(text: str, specs: Sequence[ModalityTower], talk: Conversation) -> None:
    for spec in specs:
        talk.media.setdefault(spec.name, []).extend([OPEN] * text.count(spec.placeholder))


def _part(
    part: Any, where: str, specs: Sequence[ModalityTower], counted: Sequence[ModalityTower], talk: Conversation
) -> Message:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise InputError(f"{where}: a content part needs a 'type', got {shown(repr(part))}")
    named = str(part["type"])
    for spec in specs:
        if named in (kind(spec), f"{kind(spec)}_url", f"input_{kind(spec)}"):
            talk.media.setdefault(spec.name, []).append(_medium(part, kind(spec), where))
            return {"type": kind(spec)}
    if isinstance(part.get("text"), str):
        _count(part["text"], counted, talk)
    elif named != "text":
        known = ", ".join(["text", *(kind(spec) for spec in specs)])
        raise InputError(f"{where}: no loaded modality reads parts of type {shown(repr(named))}; known: {known}")
    else:
        raise InputError(f"{where}: a text part needs 'text', got {shown(repr(part))}")
    return dict(part)


def _medium(part: Mapping[str, Any], what: str, where: str) -> Any:
    """The medium that a part carries under one of the usual keys, or ``OPEN``."""
    for key in (what, "path", "url", "data", "base64", f"{what}_url", f"input_{what}", "source"):
        value = part.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping) and "array" not in value:
            return _medium(value, what, where)
        return _decoded(value, where) if key in ("data", "base64") and isinstance(value, str) else value
    return OPEN


def _decoded(text: str, where: str) -> Any:
    if text.startswith("data:"):
        return text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{where}: data {shown(text)[:40]!r} is not valid base64") from None


def place_parts(talk: Conversation, spec: ModalityTower, count: int) -> None:
    """Put ``count`` open parts of a modality into the last user message, before or after its content."""
    for message in reversed(talk.messages):
        if message["role"] == "user":
            break
    else:
        raise InputError(f"{spec.media_keyword}: there is no user message to put them in; add one, or write "
                         f"{spec.placeholder} where they belong")
    content = message.get("content")
    parts = list(content) if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    new = [{"type": kind(spec)} for _ in range(count)]
    message["content"] = new + parts if spec.placed == "before" else parts + new
    held = talk.media.setdefault(spec.name, [])
    held.extend([OPEN] * count)  # the only open ones, so their place among carried media is found by order below
    if any(item is not OPEN for item in held[:-count]):
        talk.media[spec.name] = list(_in_order(talk, spec, message, count))


def place_tag_parts(talk: Conversation, spec: ModalityTower, count: int) -> bool:
    """Put placeholders in place of tags in users' texts; False where there are none. Raises InputError where there are
    more or fewer tags than media."""
    tag, tags, held = tag_of(spec), 0, iter(talk.media.get(spec.name, []))
    media: list[Any] = []
    for message in (message for message in talk.messages if message["role"] == "user"):
        content = message.get("content")
        if isinstance(content, Mapping):
            continue  # an object has no place for a medium
        whole = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        parts = [dict(part) for part in whole]
        for part in parts:
            if part.get("type") == kind(spec):
                media.append(next(held))
            elif found := str(part.get("text", "")).count(tag):
                part["text"] = part["text"].replace(tag, spec.placeholder)
                media += [OPEN] * found
                tags += found
        message["content"] = parts[0]["text"] if isinstance(content, str) else parts
    if tags:
        check_counts(spec, tags, count, f"{tag} tag")
        talk.media[spec.name] = [*media, *held]
    return bool(tags)


def _in_order(talk: Conversation, spec: ModalityTower, target: Message, count: int) -> Iterator[Any]:
    """Media of a modality in the order of their parts, ``count`` open ones of ``target`` among them."""
    carried = iter([item for item in talk.media[spec.name] if item is not OPEN])
    for message in talk.messages:
        parts = message.get("content")
        own = [p for p in parts if p.get("type") == kind(spec)] if isinstance(parts, list) else []
        fresh = count if message is target else 0
        old = [next(carried) for _ in range(len(own) - fresh)]
        yield from [OPEN] * fresh + old if spec.placed == "before" else old + [OPEN] * fresh


def as_text(messages: Sequence[Mapping[str, Any]], specs: Sequence[ModalityTower]) -> list[Message]:
    """Messages whose parts of these modalities are text parts with the placeholder, for templates that do not know
    the modality."""
    by_kind = {kind(spec): spec.placeholder for spec in specs}

    def swap(part: Any) -> Any:
        return {"type": "text", "text": by_kind[part["type"]]} if part.get("type") in by_kind else part

    return [
        {**message, "content": [swap(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]
