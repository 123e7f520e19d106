"""Regular expressions for strings: lengths, patterns, formats; and a matcher for them that cannot run away.

They are those of llguidance: derivatives, without look-around, and Rust's classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from gemma4_core import InputError
from gemma4_core.formatting import shown
from gemma4_schema.compiling import begins, limits, said
from gemma4_schema.nodes import Text

_HEX, _WORD, _HOST = "[0-9a-fA-F]", "[a-zA-Z0-9_+-]", "[a-zA-Z0-9]([a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?"
_MONTH_DAY = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"(19|20|21)[0-9][0-9]-({_MONTH_DAY})"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PATH = "([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9A-F][0-9A-F]){0,80}"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": "P([0-9]{1,4}W|[0-9]{1,4}D(T[0-9]{1,4}H([0-9]{1,4}M)?)?|T[0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?"
                "|T[0-9]{1,4}M([0-9]{1,4}S)?|T[0-9]{1,4}S)",
    "email": rf"{_WORD}{{1,32}}(\.{_WORD}{{1,32}}){{0,3}}@{_HOST}(\.{_HOST}){{0,3}}\.[a-zA-Z]{{2,12}}",
    "hostname": rf"{_HOST}(\.{_HOST}){{0,4}}",
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "ipv6": f"({_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-[1-5]{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}",
    "uri": rf"[a-z][a-z0-9+.-]{{1,15}}://{_HOST}(\.{_HOST}){{0,4}}(:[1-9][0-9]{{0,3}})?(/{_PATH}){{0,8}}"
           rf"(\?({_PATH}|/){{0,4}})?(#{_PATH})?",
}
"""Formats that strings are held to; others only describe. Years are those of four centuries about now, so that every
reader takes a date; all have a longest text."""


def body(text: Text, characters: str) -> str:
    """The terminal of a string's characters, each of the class ``characters``, as Lark: parts joined by ``&``.

    Raises InputError for a pattern that cannot be kept.
    """
    longest = "" if text.high is None else str(text.high)
    parts = [f"/{slashed(pattern_regex(pattern))}/" for pattern in text.patterns]
    parts += [f"/{slashed(FORMATS[name])}/" for name in text.formats if name in FORMATS]
    if not parts or text.low or text.high is not None:
        parts.append(f"/({slashed(characters)}){{{text.low},{longest}}}/")
    elif text.patterns:
        parts.append(f"/({slashed(characters)})*/")
    return " & ".join(parts)


def slashed(regex: str) -> str:
    """A regular expression as it stands between slashes."""
    return regex.replace("/", r"\/")


def pattern_regex(pattern: str) -> str:
    """A JSON schema's pattern, which may be found anywhere, as an expression for the whole text.

    Raises InputError for what llguidance does not take.
    """
    from llguidance import regex_to_lark

    anywhere = "(?s:.*)"
    found = []
    for branch in _branches(pattern):
        begins, ends = branch.startswith("^"), branch.endswith("$") and not _escaped(branch, len(branch) - 1)
        inner = branch[1 if begins else 0 : len(branch) - 1 if ends else len(branch)]
        found.append(f"{'' if begins else anywhere}({inner}){'' if ends else anywhere}")
    # its / are escaped already, which slashed() would do again
    regex = str(regex_to_lark("|".join(found), "dw")).replace(r"\/", "/")
    _compiled(f"/{slashed(regex)}/", f"pattern {shown(pattern, 100)}")
    return f"({regex})"


def _branches(pattern: str) -> list[str]:
    """The alternatives of a pattern that stand outside of groups and classes."""
    found, level, in_class, start, at = [], 0, False, 0, 0
    while at < len(pattern):
        mark = pattern[at]
        if mark == "\\":
            at += 1
        elif in_class:
            in_class = mark != "]"
        elif mark == "[":
            in_class = True
            at += pattern[at + 1 : at + 2] == "^"
            at += pattern[at + 1 : at + 2] == "]"
        elif mark in "()":
            level += 1 if mark == "(" else -1
        elif mark == "|" and level == 0:
            found.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*found, pattern[start:]]


def _escaped(text: str, at: int) -> bool:
    return (len(text[:at]) - len(text[:at].rstrip("\\"))) % 2 == 1


# ------------------------------------------------------------------------------------------------- matching


def matches_text(text: Text, value: str) -> bool:
    """Whether a text's patterns and formats match a value. Raises InputError for a pattern that cannot be kept."""
    terminals = [f"/{slashed(pattern_regex(pattern))}/" for pattern in text.patterns]
    terminals += [f"/{slashed(FORMATS[name])}/" for name in text.formats if name in FORMATS]
    return all(matches(terminal, value) for terminal in terminals)


def matches(terminal: str, value: str) -> bool:
    """Whether a terminal matches the whole of a text, in time that grows with its length."""
    matcher = _compiled(terminal, "pattern").deep_copy()
    data = list(value.encode())
    return matcher.try_consume_tokens(data) == len(data) and bool(matcher.is_accepting())


def check_terminal(terminal: str) -> None:
    """Raise InputError for a terminal that matches nothing."""
    _compiled(terminal, "a pattern with its other conditions")


@lru_cache(256)
def _compiled(terminal: str, what: str) -> Any:
    """A matcher of bytes for a terminal. Raises InputError for one that is wrong or matches nothing."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_lark(f"start: T\nT: {terminal}\n"), log_level=0,
                        limits=limits())
    if matcher.is_error():
        raise InputError(f"constraint: {what} cannot be used: {said(matcher.get_error())}")
    if not begins(matcher.deep_copy(), 256):
        raise InputError(f"constraint: {what} matches no text")
    return matcher


@cache
def _byte_tokenizer() -> Any:
    """A tokenizer whose tokens are the bytes, and an end."""
    from llguidance import LLTokenizer, TokenizerWrapper

    class Bytes:
        eos_token_id = 256
        bos_token_id = None
        tokens: Sequence[bytes] = [*(bytes([i]) for i in range(256)), b"<end>"]
        special_token_ids = (256,)

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    return LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=257, slices=[])


def literal(text: str) -> str:
    """A text as Lark writes it between quotes."""
    return json.dumps(text)
