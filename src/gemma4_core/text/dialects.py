"""Tool calls in other spellings than the model's own, read where a tool of that name was offered.

``call:NAME{…}`` without its marks, ``NAME(key=value)``, ``NAME{…}``, ``{{…}}``, JSON objects with a name and arguments,
lists of these, and all of them fenced as json or tool_code. Text that the model meant as text must stay text, so that
a call needs an offered name, arguments that parse, and a place where a call can begin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gemma4_core.text.calls import NUMBER, WORDS, CallParser, NotACall, ToolCall, number

STRING_MARK = "\udc00"
"""Stands for the token ``<|"|>`` in text; no decoded text holds a lone surrogate."""
PREFIXES = ("functions.", "default_api.", "tools.")
"""Namespaces that models put before a name."""
FENCES = ("json", "tool_code", "tool_calls", "tool_call", "tool", "")
"""Languages of a code block that is a call; a block of Python, for one, is an example."""
CLOSERS = {
    "```": "```", "<tool_call>": "</tool_call>", "<|tool_call>": "<tool_call|>", "<tool_code>": "</tool_code>",
}
"""What can stand around calls as text, and its end."""
NAME_KEYS = ("name", "tool_name", "tool", "function")
ARGUMENT_KEYS = ("arguments", "parameters", "args")
_IDENTIFIER = re.compile(r"[^\s{}\[\](),\"'<>|`]*")
_KEYWORD = re.compile(r"[^\s{}\[\](),:=\"'<>|`]*")
_BARE = re.compile(r"[^\s{}\[\](),=\"'<>|][^{}\[\](),=\"'<>|\n]*")
_FENCE = re.compile("|".join(FENCES), re.IGNORECASE)
_MARK = re.compile("call:", re.IGNORECASE)
_QUOTES = f"\"'{STRING_MARK}"


class Undecided(Exception):
    """The text ends before it is clear whether a call begins."""


class OfferedTools:
    """The names of the tools offered, and how a call of one of them can begin."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = tuple(names)
        self._folded: dict[str, str | None] = {}
        """By the name without regard to case; None where two differ in case only."""
        for name in self._exact:
            folded = name.casefold()
            self._folded[folded] = None if folded in self._folded else name
        self._words = [start + name for name in self._folded for start in ("", *PREFIXES)]
        self.initials = frozenset("cp`[{<" + "".join(word[0] for word in self._words))

    def resolve(self, name: str) -> str:
        """The offered tool that a name means. Raises NotACall."""
        if name in self._exact:
            return name
        folded = name.casefold()
        for start in ("", *PREFIXES):
            found = self._folded.get(folded.removeprefix(start)) if folded.startswith(start) else None
            if found is not None:
                return found
        raise NotACall

    def begins(self, text: str, at: int, marked: bool) -> bool:
        """Whether a call begins here; ``marked`` allows only ``call:NAME``. Raises Undecided at the text's end."""
        if marked:
            return self._named(text, at, needs_mark=True)
        if text[at] == "`":
            return _literal(text, at, "```") and self._fenced(text, at + 3)
        if text[at] == "<":
            marks = (mark for mark in CLOSERS if mark[0] == "<")
            return any(_literal(text, at, mark) and self._item(text, _spaces(text, at + len(mark))) for mark in marks)
        return self._item(text, at)

    def _fenced(self, text: str, at: int) -> bool:
        end = _word(text, at, FENCES)
        return end is not None and self._item(text, _spaces(text, end))

    def _item(self, text: str, at: int) -> bool:
        """A call, a JSON object or a list of them."""
        if text[at] == "[":
            at = _spaces(text, at + 1)
        if text[at] == "{":
            return self._object(text, _spaces(text, at + 1))
        return self._named(text, at, needs_mark=False)

    def _named(self, text: str, at: int, needs_mark: bool) -> bool:
        if not needs_mark and _literal(text, at, "print("):
            at += len("print(")
        marked = _literal(text, at, "call:")
        if needs_mark and not marked:
            return False
        end = _word(text, _spaces(text, at + len("call:")) if marked else at, self._words)
        if end is None:
            return False
        if marked:
            return text[_spaces(text, end)] in "{("
        return _at(text, end) in "{(" and _first_argument(text, end)

    def _object(self, text: str, at: int) -> bool:
        """The inside of a JSON object: its first key and, where that has the name, the name."""
        if text[at] == "{":
            at = _spaces(text, at + 1)
        end = _quoted(text, at, ("tool_calls", "type", "id", *NAME_KEYS, *ARGUMENT_KEYS))
        if end is None:
            return False
        key = text[at + 1 : end - 1]
        at = _spaces(text, end)
        if text[at] != ":":
            return False
        at = _spaces(text, at + 1)
        if key == "tool_calls":
            return text[at] == "["
        if key == "id":
            return text[at] in _QUOTES and _literal(text, at + 1, "call_")
        if key in ARGUMENT_KEYS or (key == "function" and text[at] == "{"):
            return text[at] in "{" + _QUOTES
        return _quoted(text, at, ("function",) if key == "type" else self._words) is not None


def _at(text: str, at: int) -> str:
    if at >= len(text):
        raise Undecided
    return text[at]


def _spaces(text: str, at: int) -> int:
    while _at(text, at).isspace():
        at += 1
    return at


def _literal(text: str, at: int, wanted: str) -> bool:
    found = text[at : at + len(wanted)].casefold()
    if found != wanted and wanted.startswith(found):
        raise Undecided
    return found == wanted


def _word(text: str, at: int, words: Iterable[str]) -> int | None:
    """The end of one of the words, the longest that the text can be."""
    found = _IDENTIFIER.match(text, at)
    assert found is not None
    word = found[0].casefold()
    if found.end() == len(text) and any(known.startswith(word) for known in words):
        raise Undecided
    return found.end() if word in words else None


def _quoted(text: str, at: int, words: Iterable[str]) -> int | None:
    if _at(text, at) not in _QUOTES:
        return None
    end = _word(text, at + 1, words)
    return end + 1 if end is not None and _at(text, end) == text[at] else None


def _first_argument(text: str, at: int) -> bool:
    """Whether what follows the bracket after a bare name can be arguments: ``key=value``, ``key:value`` or a map."""
    bracket, at = text[at], _spaces(text, at + 1)
    if text[at] in ("}{" + _QUOTES if bracket == "{" else "){"):
        return True
    found = _KEYWORD.match(text, at)
    assert found is not None
    return found.end() > at and text[_spaces(text, found.end())] in ("=" if bracket == "(" else "=:")


class DialectParser(CallParser):
    """Calls of offered tools in any of the spellings."""

    _key = re.compile(r"[^\s{}\[\](),:=\"'<>|][^{}\[\](),:=\"'<>|\n]*")

    def __init__(self, text: str, offered: OfferedTools) -> None:
        super().__init__(text.split(STRING_MARK))
        self._offered = offered

    def calls(self) -> list[ToolCall]:
        """One call or more that take up the whole text. Raises NotACall and ValueError."""
        mark = next(filter(self._take, CLOSERS), "")
        closing = CLOSERS.get(mark, "")
        if mark == "```":
            self._match(_FENCE)
        calls: list[ToolCall] = []
        while not (self._ended() or (closing and self._take(closing))):
            calls += self._list() if self._take("[") else self._one()
            if not self._take(","):
                self._take(";")
        if not calls or not self._ended():
            raise NotACall
        return calls

    def _list(self) -> list[ToolCall]:
        calls: list[ToolCall] = []
        while not self._take("]"):
            calls += self._one()
            self._separator("]")
        return calls

    def _one(self) -> list[ToolCall]:
        if self._take("{"):
            return self._of_object(self._arguments("}"))
        printed = self._take("print(")
        self._match(_MARK)
        self._spaces()
        found = self._match(_IDENTIFIER)
        name = self._offered.resolve(found[0] if found else "")
        end = "}" if self._take("{") else ")" if self._take("(") else None
        if end is None:
            raise NotACall
        arguments = self._arguments(end)
        if printed and not self._take(")"):
            raise NotACall
        return [ToolCall(name, arguments)]

    def _arguments(self, end: str) -> dict[str, Any]:
        """Arguments whose opening bracket is taken, and their end; a map inside may have all of them."""
        if not self._take("{"):
            return self._pairs(1, end, (":", "=") if end == "}" else ("=",))
        values = self._pairs(1)
        if not self._take(end):
            raise NotACall
        return values

    def _bare(self) -> Any:
        """A number, a word that stands for a value, or a string without its quotes."""
        found = self._match(_BARE)
        word = found[0].rstrip() if found else ""
        if word in WORDS:
            return WORDS[word]
        if NUMBER.fullmatch(word):
            return number(word)
        if not word or (":" in word and (word.endswith(":") or any(map(str.isspace, word)))):
            raise NotACall
        return word

    def _of_object(self, value: Mapping[str, Any]) -> list[ToolCall]:
        """The calls of a JSON object: a name with arguments, or OpenAI's ``function`` and ``tool_calls``."""
        if isinstance(several := value.get("tool_calls"), list):
            if not all(isinstance(one, dict) and "tool_calls" not in one for one in several):
                raise NotACall
            return [call for one in several for call in self._of_object(one)]
        inner = value.get("function")
        function = inner if isinstance(inner, dict) else value
        name = next((function[key] for key in NAME_KEYS if isinstance(function.get(key), str)), None)
        given = next((function[key] for key in ARGUMENT_KEYS if key in function), None)
        arguments = json.loads(given) if isinstance(given, str) else given
        if name is None or not isinstance(arguments, dict):
            raise NotACall
        return [ToolCall(self._offered.resolve(name), arguments)]
