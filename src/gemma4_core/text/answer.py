"""An answer's token ids split into text, thinking and tool calls by one state machine.

It works on ids because text cannot tell a control token from its spelling. An answer is an optional
``<|channel>thought\\n…<channel|>``, then text, then any number of ``<|tool_call>call:NAME{…}<tool_call|>``; models also
mix them, and every mix comes out somewhere. Calls of offered tools are found in other spellings too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemma4_core.contracts import Tokenizer
from gemma4_core.text.calls import NotACall, ToolCall, parse_call
from gemma4_core.text.dialects import STRING_MARK, OfferedTools
from gemma4_core.text.recovery import CallRecovery
from gemma4_core.text.tools import tool_declarations

CHANNEL_NAMES = ("thought",)
"""Channel names that are a heading and no content."""


@dataclass(frozen=True)
class ControlTokens:
    """The ids of the tokens that structure an answer; None where a tokenizer lacks one."""

    channel_open: int | None = None
    channel_close: int | None = None
    call_open: int | None = None
    call_close: int | None = None
    quote: int | None = None
    breaks: frozenset[int] = frozenset()
    """Tokens that cannot be inside a call: turns and tool results. One of them means that the call was cut short."""

    @staticmethod
    def of(tokenizer: Tokenizer) -> ControlTokens:
        """Those of a tokenizer, by their text."""
        find = tokenizer.special_tokens.get
        breaks = map(find, ("<|turn>", "<turn|>", "<|tool_response>", "<tool_response|>", "<bos>", "<eos>"))
        return ControlTokens(
            find("<|channel>"), find("<channel|>"), find("<|tool_call>"), find("<tool_call|>"), find('<|"|>'),
            frozenset(token for token in breaks if token is not None),
        )

    def open_channel(self, prompt: Sequence[int]) -> Sequence[int]:
        """The end of a prompt from a channel's opening that nothing closes before the answer."""
        ends = {self.channel_close, *self.breaks}
        for start in range(len(prompt) - 1, -1, -1):
            if prompt[start] == self.channel_open:
                return prompt[start:]
            if prompt[start] in ends:
                break
        return ()


@dataclass(frozen=True)
class Piece:
    """A piece of an answer."""

    kind: str
    """``text``, ``thinking`` or ``tool_call``."""
    text: str
    """What to show; for a tool call the call as JSON."""
    tool_call: Mapping[str, Any] | None = None
    """``{"name": str, "arguments": dict}`` of a tool call."""


class AnswerSplitter:
    """Feed it the ids of an answer; it gives pieces as they are complete. No special token is in their text.

    ``prompt`` are the ids before the answer: a template may leave the thought channel open there. Without them
    ``start_in_thinking`` says whether it is. A call that does not parse or is never closed comes back as text, its
    string marks as ``"``; an unclosed channel is thinking to the end. ``tools`` are the declarations offered, in any
    form of ``tool_declarations``: calls of them in other spellings are calls too, and string marks in text show as
    ``"``. Raises InputError for a wrong declaration.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, start_in_thinking: bool = False,
        control: ControlTokens | None = None, tools: Any = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._control = control or ControlTokens.of(tokenizer)
        self._kind = "thinking" if start_in_thinking else "text"
        self._stream = tokenizer.stream(skip_special=True)
        self._heading: str | None = None
        """The start of a channel as long as it may be the channel's name."""
        self._call: list[int] | None = None
        """Ids of a tool call that is not closed yet."""
        names = [tool["function"]["name"] for tool in tool_declarations(tools) or ()]
        self._offered = OfferedTools(names) if names else None
        self._recovery = CallRecovery(self._offered) if self._offered else None
        for token in self._control.open_channel(prompt):
            self.add(token)

    def add(self, token: int) -> list[Piece]:
        """The pieces that this id completes, often none or one."""
        control = self._control
        if self._call is not None:
            if token == control.call_close:
                return self._close_call()
            if token in control.breaks or token in (control.call_open, control.channel_open):
                return self._give_up_call() + self.add(token)
            self._call.append(token)
            return []
        if token == control.channel_open:
            return self._switch("thinking", heading="")
        if token == control.channel_close:
            return self._switch("text")
        if token == control.call_open:
            pieces = self._flush()
            self._call = []
            return pieces
        if self._recovery is not None and self._kind == "text":
            if token == control.call_close or token in control.breaks:
                return self._flush()
            if token == control.quote:
                return self._content(self._stream.flush() + STRING_MARK)
        return self._content(self._stream.add(token))

    def finish(self) -> list[Piece]:
        """What is held back, when no more ids come: an unfinished call as text, a cut character as U+FFFD."""
        return (self._give_up_call() if self._call is not None else []) + self._flush()

    def _content(self, text: str) -> list[Piece]:
        """Text in the present state; the name of a channel is taken off its start."""
        if self._heading is not None:
            self._heading += text
            if any(f"{name}\n".startswith(self._heading) for name in CHANNEL_NAMES) and self._heading[-1:] != "\n":
                return []
            text, self._heading = _without_name(self._heading), None
        if self._recovery is not None and self._kind == "text":
            return _pieces(self._recovery.add(text))
        return [Piece(self._kind, text)] if text else []

    def _flush(self) -> list[Piece]:
        pieces = self._content(self._stream.flush())
        if self._heading is not None:
            # nothing but a channel's name, or a part of it
            rest = "" if self._heading in ("", *CHANNEL_NAMES) else self._heading
            self._heading = None
            pieces += [Piece(self._kind, rest)] if rest else []
        return pieces + (_pieces(self._recovery.flush()) if self._recovery is not None else [])

    def _switch(self, kind: str, heading: str | None = None) -> list[Piece]:
        pieces = self._flush()
        self._kind, self._heading = kind, heading
        return pieces

    def _close_call(self) -> list[Piece]:
        ids, self._call = self._call or [], None
        segments = self._segments(ids)
        call = parse_call(segments)
        return self._as_text(segments) if call is None else _pieces([self._with_offered_name(call)])

    def _with_offered_name(self, call: ToolCall) -> ToolCall:
        """The call with the name as it was declared, where it means an offered tool."""
        try:
            return replace(call, name=self._offered.resolve(call.name)) if self._offered else call
        except NotACall:
            return call

    def _give_up_call(self) -> list[Piece]:
        ids, self._call = self._call or [], None
        return self._as_text(self._segments(ids))

    def _as_text(self, segments: Sequence[str]) -> list[Piece]:
        """What was marked as a call and is none, or calls in another spelling."""
        if self._offered is None:
            text = '"'.join(segments)
            return [Piece("text", text)] if text else []
        recovery = CallRecovery(self._offered)
        found = recovery.add(STRING_MARK.join(segments)) + recovery.flush()
        if any(isinstance(one, ToolCall) for one in found):
            # what separates calls inside the marks is not for the reader
            found = [one for one in found if isinstance(one, ToolCall) or one.strip(" \t\n,;")]
        return _pieces(found)

    def _segments(self, ids: Sequence[int]) -> list[str]:
        """The text of ids, cut at string marks."""
        segments, stream = [""], self._tokenizer.stream(skip_special=True)
        for token in ids:
            if token == self._control.quote:
                segments[-1] += stream.flush()
                segments.append("")
            else:
                segments[-1] += stream.add(token)
        segments[-1] += stream.flush()
        return segments


def _pieces(found: Sequence[str | ToolCall]) -> list[Piece]:
    return [
        Piece("text", one) if isinstance(one, str)
        else Piece("tool_call", one.as_json(), {"name": one.name, "arguments": one.arguments})
        for one in found
    ]


def _without_name(text: str) -> str:
    name, line_end, rest = text.partition("\n")
    return rest if line_end and name in CHANNEL_NAMES else text
