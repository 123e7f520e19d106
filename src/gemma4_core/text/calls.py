"""Tool calls as the model writes them: ``call:NAME{key:value,…}``.

Strings are ``<|"|>…<|"|>``, keys bare, maps ``{…}``, lists ``[…]``, numbers bare, ``true``, ``false`` and ``null``.
Models fall back to JSON or Python spelling now and then (vllm-project/vllm#51284), so that ``"…"``, ``'…'``, quoted
keys, ``True``, ``False`` and ``None`` are read too. Anything else is not a call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
"""Maps and lists inside each other; more is not a call that a person could mean."""
_HEAD = re.compile(r"\s*call:\s*([^\s{}\[\](),:\"'<>|][^\s{}\[\](),\"'<>|]*)\s*\{")
_BARE = re.compile(r"[^\s{}\[\],:\"']+")
_KEY = re.compile(r"[^\s{}\[\],:\"'][^{}\[\],:\"'\n]*")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'"}
WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants called."""

    name: str
    arguments: dict[str, Any]

    def as_json(self) -> str:
        """``{"name": …, "arguments": {…}}`` on one line."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)


class NotACall(Exception):
    """The text does not parse; the caller shows it as text."""


def parse_call(segments: Sequence[str]) -> ToolCall | None:
    """The call spelled by text cut at every string mark ``<|"|>``, or None where it does not parse.

    Every second segment is the inside of a string, whatever it holds; an even number of segments has an open string.
    """
    if len(segments) % 2 == 0:
        return None
    try:
        return CallParser(segments).call()
    except (NotACall, ValueError):
        return None


class CallParser:
    """Recursive descent over structure (even segments) and finished strings (odd segments)."""

    _key = _KEY

    def __init__(self, segments: Sequence[str]) -> None:
        self._segments = segments
        self._index = 0
        self._at = 0

    def call(self) -> ToolCall:
        head = self._match(_HEAD)
        if head is None:
            raise NotACall
        arguments = self._pairs(1)
        if not self._ended():
            raise NotACall
        return ToolCall(head[1], arguments)

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._segments[self._index], self._at)
        self._at = found.end() if found else self._at
        return found

    def _spaces(self) -> None:
        segment = self._segments[self._index]
        while self._at < len(segment) and segment[self._at].isspace():
            self._at += 1

    def _ended(self) -> bool:
        self._spaces()
        return self._index == len(self._segments) - 1 and self._at == len(self._segments[self._index])

    def _take(self, mark: str) -> bool:
        self._spaces()
        taken = self._segments[self._index].startswith(mark, self._at)
        self._at += len(mark) if taken else 0
        return taken

    def _string(self) -> str | None:
        """A marked or quoted string that begins here. Raises ValueError."""
        self._spaces()
        if self._at == len(self._segments[self._index]) and self._index + 1 < len(self._segments):
            text = self._segments[self._index + 1]
            self._index, self._at = self._index + 2, 0
            return text
        found = self._match(_QUOTED)
        if found is None:
            return None
        text = _ESCAPE.sub(_unescaped, found[0][1:-1])
        # JSON spells far characters as surrogate pairs; a lone surrogate is not text
        return text.encode("utf-16", "surrogatepass").decode("utf-16")

    def _pairs(self, depth: int, end: str = "}", between: Sequence[str] = (":",)) -> dict[str, Any]:
        """The inside of a map whose opening is taken, and its end; ``between`` stands between keys and values."""
        values: dict[str, Any] = {}
        while not self._take(end):
            key = self._string()
            if key is None:
                bare = self._match(self._key)
                if bare is None:
                    raise NotACall
                key = bare[0].rstrip()
            if not any(map(self._take, between)):
                raise NotACall
            values[key] = self._value(depth)
            self._separator(end)
        return values

    def _items(self, depth: int) -> list[Any]:
        """The inside of a list whose bracket is taken, and its closing bracket."""
        values: list[Any] = []
        while not self._take("]"):
            values.append(self._value(depth))
            self._separator("]")
        return values

    def _separator(self, end: str) -> None:
        if self._take(","):
            return
        if not self._take(end):
            raise NotACall
        self._at -= len(end)  # the loop takes it

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise NotACall
        text = self._string()
        if text is not None:
            return text
        if self._take("{"):
            return self._pairs(depth + 1)
        if self._take("["):
            return self._items(depth + 1)
        return self._bare()

    def _bare(self) -> Any:
        """A number or one of the words that stand for a value."""
        bare = self._match(_BARE)
        if bare is None:
            raise NotACall
        return WORDS[bare[0]] if bare[0] in WORDS else number(bare[0])


def _unescaped(found: re.Match[str]) -> str:
    """What an escape of JSON or Python stands for; an unknown one stays as it is."""
    code = found[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return _ESCAPED.get(code, found[0])


def number(text: str) -> int | float:
    """A finite number. Raises NotACall."""
    if NUMBER.fullmatch(text) is None:
        raise NotACall
    value = float(text) if re.search("[.eE]", text) else int(text)
    if not math.isfinite(value):
        raise NotACall
    return value
