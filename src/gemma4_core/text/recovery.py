"""Calls of offered tools found in text as it streams; all other text passes through unchanged."""

from __future__ import annotations

import re

from gemma4_core.text.calls import NotACall, ToolCall
from gemma4_core.text.dialects import CLOSERS, STRING_MARK, DialectParser, OfferedTools, Undecided

_CLOSING = {"{": "}", "[": "]", "(": ")"}
_SEPARATOR = re.compile(r"[ \t]*[;,]?[ \t]*")


class _Extent:
    """Where the call that begins at the text's start ends: brackets are balanced, strings skipped. Goes on with more
    text where it left off."""

    def __init__(self, text: str) -> None:
        start = next((mark for mark in CLOSERS if text.casefold().startswith(mark)), "")
        self.at = len(start)
        """How far the text has been read."""
        self._closer = CLOSERS.get(start, "")
        self._end: int | None = None
        self._open: list[str] = []
        self._quote, self._before = "", ""

    def end(self, text: str) -> int | None:
        """The end; None where more text is needed. Raises NotACall for brackets that do not match."""
        while self._end is None and self.at < len(text):
            char = text[self.at]
            if self._quote:
                if char == "\\" and self._quote != STRING_MARK:
                    if self.at + 1 == len(text):
                        return None
                    self.at += 1
                elif char == self._quote:
                    self._quote, self._before = "", char
                self.at += 1
                continue
            closing = text[self.at : self.at + len(self._closer)]
            if closing and not self._open and self._closer.startswith(closing):
                if closing != self._closer:
                    return None
                self._end = self.at + len(closing)
                break
            self.at += 1
            if char in _CLOSING:
                self._open.append(_CLOSING[char])
            elif char in "}])":
                if not self._open or self._open.pop() != char:
                    raise NotACall
                if not self._open and not self._closer:
                    self._end = self.at
            elif char == STRING_MARK or (char in "\"'" and self._before in ("{", "[", "(", ",", ":", "=")):
                self._quote = char
            self._before = self._before if char.isspace() else char
        return self._end


class CallRecovery:
    """Feed it text; it gives text and calls in order. It holds back only what can still become a call."""

    def __init__(self, offered: OfferedTools) -> None:
        self._offered = offered
        self.held = ""
        """Text that may be a call."""
        self._extent: _Extent | None = None
        """That of a call that has begun at the start of ``held``."""
        self._line, self._tail = "", ""
        """The first characters of the present line, the last two of the text."""
        self._fenced, self._quoted = False, False
        """Whether a code block and a marked string are open; what is inside is not a call."""

    def add(self, text: str) -> list[str | ToolCall]:
        """What this text completes."""
        self.held += text
        return self._scan(last=False)

    def flush(self) -> list[str | ToolCall]:
        """All that is held back, when a part of the answer ends. What comes next can begin with a call."""
        found = self._scan(last=True)
        self._line, self._tail, self._quoted = "", "", False
        return found

    def _scan(self, last: bool) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        passed: list[str] = []
        at = 0
        while at < len(self.held):
            calls: list[ToolCall] = []
            try:
                if self._extent is None and not self._begins(at):
                    raise NotACall
                end, calls = self._read(at, last)
            except Undecided:
                if not last:
                    break
            except (NotACall, ValueError, RecursionError):
                pass
            # what stands inside a broken call is not a call either
            failed, self._extent = self._extent.at if self._extent else 1, None
            if calls:
                found += ["".join(passed), *calls]
                passed, at = [], end
                self._line, self._tail = "", ""
            else:
                passed += map(self._pass, self.held[at : at + failed])
                at += failed
        self.held = self.held[at:]
        found.append("".join(passed))
        return [one for one in found if one]

    def _begins(self, at: int) -> bool:
        """Whether a call begins at this place. Raises Undecided."""
        if self._fenced or self._quoted or self.held[at].casefold() not in self._offered.initials:
            return False
        before = self._tail[-1:]
        line_start = not self._line or (before in (" ", "\t") and self._tail[0] in ".!?:")
        if line_start and self._offered.begins(self.held, at, marked=False):
            return True
        return not (before.isalnum() or before in tuple("_`'\"")) and self._offered.begins(self.held, at, marked=True)

    def _read(self, at: int, last: bool) -> tuple[int, list[ToolCall]]:
        """The call here and its end. Raises Undecided, NotACall and ValueError."""
        text = self.held[at:]
        self._extent = self._extent or _Extent(text)
        end = self._extent.end(text)
        if end is None:
            if not last or not text.startswith(("```", "<")):
                raise Undecided
            end = len(text)
        calls = DialectParser(text[:end], self._offered).calls()
        if text[0] not in "{[`<" and not text.casefold().startswith("call:"):
            # NAME(…) in the middle of a sentence tells about a call: the line must end or go on with a call
            after = _SEPARATOR.match(text, end)
            assert after is not None
            if after.end() == len(text):
                if not last:
                    raise Undecided
            elif text[after.end()] != "\n" and not self._offered.begins(text, after.end(), marked=False):
                raise NotACall
        return at + end, calls

    def _pass(self, char: str) -> str:
        """A character of text; a string mark is shown as a quote."""
        if char == "\n":
            self._fenced ^= self._line == "```"
            self._line = ""
        elif len(self._line) < 3 and (self._line or not (char.isspace() or char in ",;")):
            self._line += char
        self._tail = self._tail[-1:] + char
        self._quoted ^= char == STRING_MARK
        return '"' if char == STRING_MARK else char
