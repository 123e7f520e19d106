"""What the parts of answers amount to: one ``Outcome`` for each answer, and the tokens of all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from gemma4_core import Answer, Part, Stats
from gemma4_core.openai import likely
from gemma4_serve.engine.contract import EngineClient, Event, Stream
from gemma4_serve.engine.local import error_of
from gemma4_serve.settings import Settings


@dataclass
class Outcome:
    """One answer as far as it has come."""

    choice: int
    wants_logprobs: bool = False
    kinds: tuple[str, ...] = ("text",)
    """Kinds of parts whose log-probabilities are told."""
    answer: Answer = field(default_factory=Answer)
    reasoning_tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Of the tokens of its text; their texts joined are the text."""
    stop: str | None = None
    """The stop string that ended it."""
    text: str = ""
    """The text of all its parts, of whatever kind."""

    def take(self, part: Part, engine: EngineClient) -> list[dict[str, Any]]:
        """Add a part; the log-probabilities that it brings."""
        self.answer.take(part)
        self.answer.choice = self.choice
        self.text += part.text
        self.stop = self.stop or part.stop
        self.reasoning_tokens += part.kind == "thinking" and part.token is not None
        if not self.wants_logprobs or part.kind not in self.kinds or (part.token is None and not part.text):
            return []
        if part.token is None:  # text that was held back for tokens told of already
            logprob = self.answer.logprobs[-1] if self.answer.logprobs else 0.0
            told = likely(part.text, logprob) | {"top_logprobs": []}
        else:
            top = [likely(engine.piece(token), value) for token, value in part.top_logprobs or ()]
            told = likely(part.text, part.logprob or 0.0) | {"top_logprobs": top}
        self.logprobs.append(told)
        return [told]


@dataclass
class Outcomes:
    """All answers to one request."""

    stream: Stream
    engine: EngineClient
    settings: Settings
    count: int
    wants_logprobs: bool = False
    kinds: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        self.each = [Outcome(choice, self.wants_logprobs, self.kinds) for choice in range(self.count)]

    def take(self, event: Event) -> list[dict[str, Any]]:
        """Add an event; the log-probabilities that it brings. Raises ApiError where an answer failed."""
        if not isinstance(event, Part):
            return []
        if event.error is not None:
            raise error_of(event, self.settings)
        return self.each[event.choice].take(event, self.engine)

    async def whole(self) -> None:
        """Wait for all answers. Raises ApiError where one failed."""
        async for events in self.stream.batches():
            for event in events:
                self.take(event)

    @property
    def answers(self) -> list[Answer]:
        """Those that came."""
        return [outcome.answer for outcome in self.each]

    @property
    def stats(self) -> Stats | None:
        """Of the first answer that has ended."""
        return next((answer.stats for answer in self.answers if answer.stats is not None), None)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer.tokens) for answer in self.answers)

    @property
    def reasoning_tokens(self) -> int:
        """Those of them that are thoughts."""
        return sum(outcome.reasoning_tokens for outcome in self.each)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not run again."""
        return self.stats.reused_tokens if self.stats is not None else 0

    def usage(self) -> dict[str, Any]:
        """Tokens in OpenAI's form."""
        prompt, made = self.stream.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }  # fmt: skip

    def timings(self) -> dict[str, Any]:
        """Counts and speeds, as llama.cpp's server tells them (tools/server/README.md)."""
        stats = self.stats
        made = self.completion_tokens
        if stats is None:
            return {"prompt_n": self.stream.prompt_tokens, "predicted_n": made, "prompt_per_second": None,
                    "predicted_per_second": None}  # fmt: skip
        return {
            "cache_n": stats.reused_tokens, "prompt_n": stats.prompt_tokens - stats.reused_tokens,
            "prompt_ms": stats.prompt_seconds * 1e3, "prompt_per_second": stats.prompt_tps, "predicted_n": made,
            "predicted_ms": stats.generation_seconds * 1e3, "predicted_per_second": stats.generation_tps,
        }  # fmt: skip


def figures(outcomes: Iterable[Outcomes]) -> dict[str, Any]:
    """What the log's line says about answers."""
    found = [*outcomes]
    return {
        "prompt_tokens": sum(each.stream.prompt_tokens for each in found),
        "cached_tokens": sum(each.cached_tokens for each in found),
        "completion_tokens": sum(each.completion_tokens for each in found),
        "finish": sorted({answer.finish_reason or "" for each in found for answer in each.answers}),
    }


async def consumed(
    stream: Stream, take: Callable[[Event], Iterable[bytes]], close: Callable[[], Iterable[bytes]]
) -> None:
    """Take every event of a stream and close it, for an answer that is sent whole: what its pieces would be is left."""
    async for events in stream.batches():
        for one in events:
            deque(take(one), 0)
    deque(close(), 0)
