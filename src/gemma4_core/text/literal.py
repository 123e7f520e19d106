"""Text that stays text: what people and tools wrote never becomes a control token.

A chat template joins its own control tokens with the words of others into one text, where ``<turn|>`` that somebody
wrote looks like the token. So before rendering, the characters that special tokens begin and end with are replaced in
those words by stand-ins, characters that occur nowhere else. What still spells a special token afterwards is the
template's. A stand-in replaces exactly one character, so that templates trim, cut and measure as they would.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma4_core.contracts import Tokenizer

OWN = {
    "<|channel>": ("<|channel>", "<channel|>"), "<|tool_call>": ("<|tool_call>", "<tool_call|>", '<|"|>'),
}
"""What an assistant's text may hold that the model wrote as control tokens, whole thoughts and whole tool calls: by the
token that opens one those that stay tokens in it, of which the second one closes it."""
OWN_OPENINGS = re.compile(r"<\|channel>|<\|tool_call>(?=\s{0,8}call:)")
STAND_INS = ((0xFDD0, 0xFDF0), (0xE000, 0xF900))
"""Noncharacters first, then private use."""


class LiteralText:
    """Hides text from a tokenizer's special tokens, and encodes what was rendered from it."""

    def __init__(self, tokenizer: Tokenizer, values: Any) -> None:
        """``values`` are all texts that may be rendered, nested as they come: a stand-in occurs in none of them."""
        self._tokenizer = tokenizer
        self._special = {text: number for text, number in tokenizer.special_tokens.items() if text.strip()}
        self._pattern = spelled(self._special)
        edges = sorted({edge for text in self._special for edge in (text[0], text[-1]) if not edge.isspace()})
        used = set(chain.from_iterable(strings(values)))
        free = (chr(code) for code in chain.from_iterable(range(*bounds) for bounds in STAND_INS))
        self._hidden = {ord(edge): next(mark for mark in free if mark not in used) for edge in edges}
        self._shown = {ord(mark): chr(edge) for edge, mark in self._hidden.items()}
        # json.dumps and repr write a stand-in as an escape
        escapes = {f"\\u{ord(mark):04x}": mark for mark in self._hidden.values()}
        written = {escape for text in strings(values) if "\\u" in text for escape in escapes if escape in text}
        self._escapes = {escape: mark for escape, mark in escapes.items() if escape not in written}

    def hide(self, text: str, keep: Iterable[str] = ()) -> str:
        """A text in which nothing spells a special token, except those of ``keep``."""
        kept, pieces, at = spelled(keep), [], 0
        for found in kept.finditer(text) if kept else ():
            pieces += [self._hide(text[at : found.start()]), found[0]]
            at = found.end()
        return "".join([*pieces, self._hide(text[at:])])

    def _hide(self, text: str) -> str:
        return text.translate(self._hidden)

    def hide_data(self, value: Any) -> Any:
        """Plain data with every text and every key hidden."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {self.hide_data(key): self.hide_data(item) for key, item in value.items()}
        return [self.hide_data(item) for item in value] if isinstance(value, list | tuple) else value

    def hide_messages(self, messages: Sequence[Mapping[str, Any]], keep: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Messages, as ``template_messages`` gives them, with every text hidden.

        The spellings of ``keep``, which are placeholders of media, stay in the content of users' messages; whole
        thoughts and tool calls stay in an assistant's content.
        """
        return [self._message(message, tuple(keep)) for message in messages]

    def _message(self, message: Mapping[str, Any], keep: Sequence[str]) -> dict[str, Any]:
        hidden: dict[str, Any] = self.hide_data(message)
        own = message["role"] in ("assistant", "model")
        hide: Callable[[str], str] = self._own if own else lambda text: self.hide(text, keep)
        content = message.get("content")
        if (own or message["role"] == "user") and isinstance(content, str):
            hidden["content"] = hide(content)
        elif (own or message["role"] == "user") and isinstance(content, list):
            hidden["content"] = [
                {**shown, "text": hide(part["text"])} if isinstance(part.get("text"), str) else shown
                for part, shown in zip(content, hidden["content"], strict=True)
            ]
        for call, shown in zip(message.get("tool_calls") or (), hidden.get("tool_calls") or (), strict=True):
            arguments = call["function"].get("arguments")
            if isinstance(arguments, str):
                shown["function"]["arguments"] = self.hide(arguments, ('<|"|>',))
        return hidden

    def _own(self, text: str) -> str:
        """An assistant's text: whole thoughts and calls keep their tokens."""
        pieces, at, last = [], 0, {opening: text.rfind(kept[1]) for opening, kept in OWN.items()}
        for found in OWN_OPENINGS.finditer(text):
            opening = found[0]
            if at <= found.start() < last[opening]:
                end = text.find(OWN[opening][1], found.end()) + len(OWN[opening][1])
                pieces += [self._hide(text[at : found.start()]), self.hide(text[found.start() : end], OWN[opening])]
                at = end
        return "".join([*pieces, self._hide(text[at:])])

    def restore(self, text: str) -> str:
        """A rendered text as people read it."""
        for escape, mark in self._escapes.items():
            text = text.replace(escape, mark)
        return text.translate(self._shown)

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text: special tokens are recognised only where no hidden character takes part.
        Raises TokenizerError."""
        if self._pattern is None:
            return self._tokenizer.encode(self.restore(text))
        meant = [self._special[found] for found in self._pattern.findall(text)]
        ids = self._tokenizer.encode(self.restore(text))
        known = frozenset(self._special.values())
        if [number for number in ids if number in known] == meant:
            return ids
        pieces: list[int] = []
        for piece in re.split(f"({self._pattern.pattern})", text):
            pieces += [self._special[piece]] if piece in self._special else self._plain(self.restore(piece), known)
        return pieces

    def _plain(self, text: str, known: frozenset[int]) -> list[int]:
        """Ids of a text without special tokens. Where the model of the vocabulary makes such a token of its spelling,
        it is cut behind its first character."""
        ids = self._tokenizer.encode(text, special=False) if text else []
        if self._pattern is None or known.isdisjoint(ids) or not self._pattern.search(text):
            return ids
        cuts = [0, *(found.start() + 1 for found in self._pattern.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in pairwise(cuts)]
        return [number for part in parts if part for number in self._tokenizer.encode(part, special=False)]


def spelled(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """What finds tokens in a text, the longest first; None for no tokens."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def strings(value: Any) -> Iterator[str]:
    """Every text in nested data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)
