"""How values are written: as compact JSON, or as the model writes the arguments of a tool call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from gemma4_schema.nodes import Text
from gemma4_schema.regexes import body, literal, pattern_regex, slashed

KEY_LENGTH = 64
"""Characters of a key that the schema does not name."""
JSON_CHARACTER = r'[^"\\\x00-\x1F\x7F]'
JSON_ESCAPE = r'\\(["\\bfnrt]|u00[01][0-9a-f])'
BARE_KEY = r"[\p{L}\p{N}_.\-]"
_BREAKS = set("{}[],:\"'<>|=\n")


class Terminals(Protocol):
    """Where a spelling puts regular expressions: equal ones are one terminal."""

    def terminal(self, expression: str, checked: bool = False) -> str:
        """The name of a terminal; ``checked`` refuses one that matches nothing."""


class Spelling(Protocol):
    """A way to write values; each method returns a piece of a Lark rule."""

    exponents: bool
    ordered: bool
    """Whether keys come in the order of the schema."""

    def text(self, text: Text, terminals: Terminals) -> str:
        """Any of these strings."""

    def string(self, value: str) -> str:
        """This string."""

    def key(self, name: str) -> str:
        """This key with its colon."""

    def other_key(self, pattern: str | None, taken: Sequence[str], not_patterns: Sequence[str],
                  terminals: Terminals) -> str:
        """A key that the schema does not name, with its colon: one that ``pattern`` matches, and none of the others."""


class Json:
    """JSON without white space between values. Only what must be escaped is, but for control characters, which may
    have either of JSON's spellings."""

    exponents = True
    ordered = True

    def text(self, text: Text, terminals: Terminals) -> str:
        if text.patterns or any(True for _ in text.formats):
            inner = body(text, JSON_CHARACTER)
            return terminals.terminal(f'"\\"" ({inner}) "\\""', checked=bool(text.patterns))
        longest = "" if text.high is None else str(text.high)
        characters = f"({JSON_CHARACTER}|{JSON_ESCAPE}){{{text.low},{longest}}}"
        return terminals.terminal(f'/"{characters}"/')

    def string(self, value: str) -> str:
        return literal(json.dumps(value, ensure_ascii=False))

    def key(self, name: str) -> str:
        return literal(json.dumps(name, ensure_ascii=False) + ":")

    def other_key(
        self, pattern: str | None, taken: Sequence[str], not_patterns: Sequence[str], terminals: Terminals
    ) -> str:
        parts = [f"/{JSON_CHARACTER}{{1,{KEY_LENGTH}}}/", *_key_patterns(pattern, taken, not_patterns)]
        return terminals.terminal(f'"\\"" ({" & ".join(parts)}) "\\":"', checked=pattern is not None)


class Call:
    """The model's own spelling of arguments: strings between two string marks, keys bare where they can be."""

    exponents = False
    ordered = False

    def __init__(self, mark: int) -> None:
        self._mark = f"<[{mark}]>"

    def text(self, text: Text, terminals: Terminals) -> str:
        if text.high == 0:
            return f"{self._mark} {self._mark}"
        # a terminal is never empty
        longer = Text(max(text.low, 1), text.high, text.patterns, text.formats)
        inner = terminals.terminal(body(longer, "(?s:.)"), checked=bool(text.patterns))
        empty = text.low == 0 and not text.patterns and not text.formats
        return f"{self._mark} {inner}{'?' if empty else ''} {self._mark}"

    def string(self, value: str) -> str:
        return f"{self._mark} {literal(value)} {self._mark}" if value else f"{self._mark} {self._mark}"

    def key(self, name: str) -> str:
        return literal(f"{name}:") if is_bare(name) else f'{self.string(name)} ":"'

    def other_key(
        self, pattern: str | None, taken: Sequence[str], not_patterns: Sequence[str], terminals: Terminals
    ) -> str:
        parts = [f"/{BARE_KEY}{{1,{KEY_LENGTH}}}/", *_key_patterns(pattern, taken, not_patterns)]
        return f'{terminals.terminal(" & ".join(parts), checked=pattern is not None)} ":"'


def is_bare(name: str) -> bool:
    """Whether a key needs no marks: it cannot be taken for anything else, and no white space is lost."""
    return bool(name) and not set(name) & _BREAKS and not any(map(str.isspace, name)) and name.isprintable()


def _key_patterns(pattern: str | None, taken: Sequence[str], not_patterns: Sequence[str]) -> list[str]:
    parts = [f"/{slashed(pattern_regex(pattern))}/"] if pattern is not None else []
    parts += [f"~({' | '.join(map(literal, taken))})"] if taken else []
    return parts + [f"~/{slashed(pattern_regex(other))}/" for other in not_patterns]


def constant(value: Any, spelling: Spelling, ends: str = "{}[]") -> str:
    """This value."""
    if isinstance(value, str):
        return spelling.string(value)
    if isinstance(value, dict):
        inside = ' "," '.join(f"{spelling.key(key)} {constant(item, spelling)}" for key, item in value.items())
        return f'"{{" {inside} "}}"' if inside else '"{}"'
    if isinstance(value, list):
        inside = ' "," '.join(constant(item, spelling) for item in value)
        return f'"[" {inside} "]"' if inside else '"[]"'
    return literal(json.dumps(value))
