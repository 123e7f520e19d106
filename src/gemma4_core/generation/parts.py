"""Text out: parts of an answer as its tokens come, with kind, finish reason and statistics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass, replace
from typing import Any

from gemma4_core.devices.memory import peak_memory_bytes
from gemma4_core.engine.sequence import Sequence, Token
from gemma4_core.model.media import MediaTime
from gemma4_core.text import AnswerSplitter, StopStrings


@dataclass(frozen=True)
class Stats:
    """Counts, seconds and bytes of one answer. Rates exclude what the cache held already and the first token."""

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    prompt_seconds: float
    generation_seconds: float
    load_seconds: float
    peak_memory_bytes: int
    media: Mapping[str, MediaTime]
    """What each tower took, by its name."""
    queue_seconds: float = 0.0
    """Between submitting it and getting a slot."""
    drafted_tokens: int = 0
    """Ids that a drafter proposed, and how many of them the model chose as well."""
    accepted_tokens: int = 0

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens run per second."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_tps(self) -> float:
        """Tokens per second after the first."""
        return (self.generated_tokens - 1) / self.generation_seconds if self.generation_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        media = {name: asdict(time) | {"seconds_each": time.seconds_each} for name, time in self.media.items()}
        return asdict(self) | {"prompt_tps": self.prompt_tps, "generation_tps": self.generation_tps, "media": media}


@dataclass(frozen=True)
class Part:
    """A piece of an answer. ``token``, ``logprob`` and ``top_logprobs`` are those of the id that completed it; the last
    part carries ``finish_reason`` (``stop``, ``length``, ``tool_call``, ``cancelled``), ``stats``, and ``error`` where
    something failed."""

    text: str
    kind: str = "text"
    token: int | None = None
    logprob: float | None = None
    tool_call: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    stats: Stats | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    error: str | None = None
    fault: bool = False
    """Whether ``error`` tells of the machine or the program, not of what was asked."""
    stop: str | None = None
    """On the last part: the stop string that ended the answer, where one did."""
    choice: int = 0
    """Which of several answers to one request it belongs to."""


def statistics(sequence: Sequence, tokens: int, load_seconds: float, device: str) -> Stats:
    """The statistics of a sequence as far as it has come, of which so many tokens were handed out."""
    drafts = sequence.drafting.stats if sequence.drafting is not None else None
    ends = sequence.last or time.perf_counter()
    return Stats(
        sequence.length,
        sequence.reused,
        tokens,
        (sequence.first or ends) - sequence.admitted if sequence.admitted else 0.0,
        ends - sequence.first if sequence.first else 0.0,
        load_seconds,
        peak_memory_bytes(device),
        sequence.prompt.times,
        sequence.admitted - sequence.began if sequence.admitted else 0.0,
        drafts.proposed if drafts is not None else 0,
        drafts.accepted if drafts is not None else 0,
    )


class NoText:
    """An answer on a folder without a tokenizer: ids only."""

    def add(self, token: int) -> list[Any]:
        """No text."""
        return []

    def finish(self) -> list[Any]:
        """No text."""
        return []


class AnswerParts:
    """Makes parts of one answer's tokens. ``stops`` end it and are left out, ``splitter`` makes text."""

    def __init__(self, splitter: AnswerSplitter | NoText, stops: StopStrings) -> None:
        self.splitter, self.stops = splitter, stops
        self.stopped = False
        """Whether a stop string has ended the answer."""
        self.called = False
        """Whether it holds a tool call."""

    def token(self, token: Token) -> list[Part]:
        """The parts that a token completes; the first carries it."""
        first, *more = [*self._parts(self.splitter.add(token.id))] or [Part("")]
        top = token.top or None
        return [replace(first, token=token.id, logprob=token.logprob, top_logprobs=top), *more]

    def end(self, reason: str | None) -> list[Part]:
        """What is left when no token follows."""
        if self.stopped:
            return []
        rest = self._parts(self.splitter.finish())
        return [*rest, *([Part(text)] if (text := self.stops.flush()) else [])]

    def reason(self, reason: str | None) -> str | None:
        """Why the answer ended, given why its tokens did."""
        reason = "stop" if self.stopped else reason
        return "tool_call" if self.called and reason == "stop" else reason

    def _parts(self, found: Items[Any]) -> list[Part]:
        parts: list[Part] = []
        for piece in found:
            text = piece.text
            if piece.kind == "text":
                text, self.stopped = self.stops.add(text)
            elif rest := self.stops.flush():
                parts.append(Part(rest))
            self.called = self.called or piece.kind == "tool_call"
            if text or piece.kind == "tool_call":
                parts.append(Part(text, piece.kind, tool_call=piece.tool_call))
            if self.stopped:
                break
        return parts
