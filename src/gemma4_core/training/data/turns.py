"""Which of a rendered conversation the model says, told from the chat template itself.

The text comes from ``GemmaMultimodalProcessor.render``, in which special tokens are the template's or the model's own,
whatever people and tools spell.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import InputError, TokenizerError
from gemma4_core.text.literal import spelled
from gemma4_core.text.messages import REASONING_KEYS
from gemma4_core.training.data.forms import ANSWERS

if TYPE_CHECKING:
    from gemma4_core.processing.inputs import Rendered
    from gemma4_core.text import ChatTemplate

RESULT_BEGIN, RESULT_END = "<|tool_response>", "<tool_response|>"
"""What a tool says stands inside the model's turn and is not the model's; the mark that it stops at is."""
THOUGHT_BEGIN, THOUGHT_END, CALL_BEGIN = "<|channel>", "<channel|>", "<|tool_call>"
NEAR = 32
"""Characters between the mark of a thought or a call and its first word, the mark included."""
QUESTION, ANSWER, AGAIN = "Quartz", "Basalt", "Flint"
"""Contents of a conversation that shows what the template writes around them."""
SIGNS = [chr(plane << 16 | 0xFFFE) for plane in range(1, 17)]
"""Noncharacters that messages are signed with."""


@dataclass(frozen=True)
class Span:
    """Characters of a rendered conversation that the model says."""

    start: int
    end: int
    message: int | None = None
    """Whose they are, by the message's index, where that was looked for."""
    opens: str | None = None
    """What a generation prompt ends in here; None where the model goes on with a span before."""


@dataclass(frozen=True)
class Turns:
    """What a template writes around the model's turns."""

    opening: str
    """Such as ``<|turn>model`` and a line end."""
    closing: str
    """Such as ``<turn|>``, which the model has to learn too."""
    prefix: str = ""
    """What a generation prompt ends in behind the opening: an empty thought, where large models do not think."""
    after_result: str = ""
    """What a generation prompt ends in behind a tool's result."""

    def spoken(self, text: str) -> list[Span]:
        """The model's own parts in order: its turns and their ends, without results of tools."""
        spans: list[Span] = []
        at = text.find(self.opening)
        while at >= 0:
            first = at + len(self.opening)
            end = text.find(self.closing, first)
            last = len(text) if end < 0 else end + len(self.closing)
            spans += self._without_results(text, first, last)
            at = text.find(self.opening, last)
        return spans

    def _without_results(self, text: str, first: int, last: int) -> list[Span]:
        spans, opens = [], self.prefix
        while (begin := text.find(RESULT_BEGIN, first, last)) >= 0:
            if begin > first:  # a result right behind another one is not asked for by the model
                spans.append(Span(first, begin + len(RESULT_BEGIN), opens=opens))
            end = text.find(RESULT_END, begin, last)
            first, opens = last if end < 0 else end + len(RESULT_END), self.after_result
        return [*spans, Span(first, last, opens=opens)] if first < last else spans


def common(one: str, two: str) -> str:
    """What two texts begin with."""
    size = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return one[:size]


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


def turns_of(template: ChatTemplate, special: Collection[str], **variables: Any) -> Turns | None:
    """What the template writes around the model's turns; None where that is not always the same, or holds no special
    token and so could be spelt by anybody."""
    question = [user(QUESTION)]
    answered = [*question, {"role": "assistant", "content": ANSWER}]

    def render(messages: Sequence[Mapping[str, Any]], opened: bool = False) -> str:
        return template.render(messages, add_generation_prompt=opened, **variables)

    try:
        whole = render([*answered, user(AGAIN)])
        question_alone, prompt = render(question), render(question, True)
        answer = render(answered).rpartition(ANSWER)[2]
    except TokenizerError:
        return None
    if any(word not in whole for word in (QUESTION, ANSWER, AGAIN)):
        return None
    before = whole.split(QUESTION, 1)[1].split(ANSWER, 1)[0]
    after = whole.split(ANSWER, 1)[1].split(AGAIN, 1)[0]
    opening = before[len(common(before, question_alone.rpartition(QUESTION)[2])) :]
    closing = common(after, answer).rstrip()
    if any(word in opening + closing for word in (QUESTION, ANSWER, AGAIN)):
        return None
    if not all(any(token in mark for token in special) for mark in (opening, closing)):
        return None
    opened = question_alone + opening
    prefix = prompt[len(opened) :] if prompt.startswith(opened) else ""
    return Turns(opening, closing, prefix, _after_result(render, question, opening))


def _after_result(render: Any, question: list[dict[str, Any]], opening: str) -> str:
    """What a generation prompt adds to a model's turn that stands behind a tool's result."""
    call = {"type": "function", "function": {"name": ANSWER, "arguments": {}}}
    result = {"name": ANSWER, "response": {"value": AGAIN}}
    called = [*question, {"role": "assistant", "content": "", "tool_calls": [call], "tool_responses": [result]}]
    try:
        text, prompt = render(called), render(called, True)
    except TokenizerError:
        return ""
    added = prompt[len(text) :] if prompt.startswith(text) else ""
    return "" if opening in added else added


def pieces_of(
    text: str, spans: Sequence[Span], trained: Sequence[bool], thoughts: Mapping[int, str], everything: bool
) -> list[tuple[str, bool]]:
    """A rendered conversation in pieces, each with whether it is trained on.

    Where the model begins, what its generation prompt ends in stands before what it says, not trained on: a closed
    thought is put there, anything else is where the template wrote it.

    Args:
        spans: what the model says.
        trained: for each span, whether it is trained on.
        thoughts: text to be trained on before a message's first span, by message.
        everything: whether what nobody says is trained on as well.
    """
    pieces: list[tuple[str, bool]] = []
    at, left = 0, dict(thoughts)
    for span, own in zip(spans, trained, strict=True):
        pieces.append((text[at : span.start], everything))
        start, opens = span.start, span.opens or ""
        thought = left.pop(span.message, "") if span.message is not None else ""
        if own and opens and text.startswith(opens, start, span.end):
            start += len(opens)
            pieces.append((opens, everything))
        elif own and not thought and _closed(opens) and not text.startswith(THOUGHT_BEGIN, start):
            pieces.append((opens, everything))
        pieces += [(thought, own), (text[start : span.end], own)]
        at = span.end
    pieces.append((text[at:], everything))
    joined: list[tuple[str, bool]] = []
    for piece, own in pieces:
        if joined and joined[-1][1] == own:
            joined[-1] = (joined[-1][0] + piece, own)
        elif piece:
            joined.append((piece, own))
    return joined


def _closed(text: str) -> bool:
    return text.count(THOUGHT_BEGIN) == text.count(THOUGHT_END)


def owned(rendered: Rendered, spans: Sequence[Span], special: Collection[str]) -> list[Span]:
    """Spans cut where one message ends and the next one begins, with their messages: found by rendering once more,
    with every assistant message signed. Raises InputError where the template does not write the signs."""
    sign = next((sign for sign in SIGNS if sign not in rendered.text), "")
    messages = [
        _signed(message, f"{sign}{index}{sign}") if message["role"] in ANSWERS else message
        for index, message in enumerate(rendered.messages)
    ]
    assert rendered.again is not None
    text = rendered.again(messages, False) if sign else ""
    pattern = re.compile(f"{re.escape(sign)}([0-9]+){re.escape(sign)}")
    if not sign or pattern.sub("", text) != rendered.text:
        raise InputError("the chat template does not let assistant messages be told apart; leave weight, train and "
                         "reasoning out of their messages")
    places, removed = [], 0
    for found in pattern.finditer(text):
        places.append((found.start() - removed, int(found[1])))
        removed += len(found[0])
    tokens = spelled(special)
    result: list[Span] = []
    for span in spans:
        starts: dict[int, int] = {}
        for place, index in places[bisect_left(places, (span.start,)) : bisect_left(places, (span.end,))]:
            starts.setdefault(index, _opened(rendered.text, span.start, place, tokens) if starts else span.start)
        bounds = [*starts.values(), span.end]
        result += [
            Span(start, end, index, span.opens if start == span.start else None)
            for index, start, end in zip(starts, bounds, bounds[1:], strict=False)
        ] or [span]
    return result


def _opened(text: str, start: int, place: int, tokens: re.Pattern[str] | None) -> int:
    """Where a message begins whose first word is at ``place``: at the mark of its thought or call, if it has one."""
    marks = list(tokens.finditer(text, max(start, place - NEAR), place)) if tokens else []
    return marks[-1].start() if marks and marks[-1][0] in (THOUGHT_BEGIN, CALL_BEGIN) else place


def _signed(message: Mapping[str, Any], sign: str) -> dict[str, Any]:
    """A message with a sign before each of its texts."""
    signed = dict(message)
    for key in REASONING_KEYS:
        if isinstance(message.get(key), str):
            signed[key] = sign + message[key]
    calls = message.get("tool_calls") or []
    signed["tool_calls"] = [
        {**call, "function": {**call["function"], "name": sign + call["function"]["name"]}} for call in calls
    ]
    if not calls:
        signed.pop("tool_calls")
    content = message.get("content")
    if isinstance(content, str) and (content.strip() or not calls):
        signed["content"] = _after_thought(content, sign)
    elif isinstance(content, list):
        signed["content"] = [
            {**part, "text": _after_thought(part["text"], sign)} if part.get("text", "").strip() else part
            for part in content
        ]
    return signed


def _after_thought(text: str, sign: str) -> str:
    """A text with a sign where its words begin, behind what a template may cut off."""
    start = text.rfind(THOUGHT_END) + len(THOUGHT_END) if THOUGHT_END in text else 0
    start += len(text[start:]) - len(text[start:].lstrip())
    return text[:start] + sign + text[start:]
