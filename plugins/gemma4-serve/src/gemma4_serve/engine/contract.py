"""What an engine client promises: submit, stream, cancel, stats. One runs in this process; packages bring others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemma4_core import Part, SchedulerStats


@dataclass(frozen=True)
class ModelCard:
    """The model that is served, as clients see it."""

    name: str
    created: int
    context: int
    """Positions of a prompt with its answer."""
    vocabulary: int
    modalities: tuple[str, ...] = ()
    """Kinds of content parts besides text, such as ``image``."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Names of adapters after the model's own and a colon, with the engine's name for each."""
    fingerprint: str = ""
    text: bool = True
    """Whether there is a tokenizer."""
    template: bool = True
    """Whether there is a chat template."""


@dataclass(frozen=True)
class Asked:
    """A request as an engine client takes it: plain values only, so that it can travel."""

    kind: str
    """``messages``, ``prompt`` (raw text) or ``tokens``."""
    prompt: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gemma4_core.Request``; media are bytes inside the messages."""
    one_call: bool = False
    """Whether an answer ends after its first tool call."""
    progress: bool = False
    """Whether it is told how far the prompt has come."""


@dataclass(frozen=True)
class Progress:
    """How far a prompt has come, in tokens and seconds."""

    total: int
    cached: int
    done: int
    seconds: float


@dataclass(frozen=True)
class Scored:
    """A prompt that is told again: its text, and for each of its tokens what the model thinks of it."""

    text: str = ""
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    """The first token has none."""
    top: tuple[Mapping[str, float] | None, ...] = ()


Event = Part | Progress


class Stream(Protocol):
    """Answers on their way."""

    prompt_tokens: int

    def batches(self) -> AsyncIterator[list[Event]]:
        """What has come since the last time, at most every few milliseconds; an empty list where nothing has come for
        a while. It ends after the last answer's last part."""

    def cancel(self) -> None:
        """End the answers within a step; nothing more is read."""


class EngineClient(Protocol):
    """Answers requests. All methods belong to the event loop."""

    @property
    def card(self) -> ModelCard:
        """The model that it serves."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""

    async def submit(self, asked: Asked) -> Stream:
        """Begin to answer. Raises ApiError where it cannot: a wrong request, too long a prompt, no room."""

    async def prompt_ids(self, asked: Asked) -> list[int]:
        """The ids of a prompt, as ``submit`` would run it. Raises ApiError."""

    async def render(self, asked: Asked) -> str:
        """The text that the chat template makes of messages. Raises ApiError."""

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """The ids of a text; ``special`` says whether special tokens spelt in it count. Raises ApiError."""

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids. Raises ApiError."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text. Raises ApiError."""

    async def score(self, asked: Asked, top: int | None) -> Scored:
        """A prompt with the log-probabilities of its tokens and of so many likeliest ones; None is the text alone.
        Raises ApiError."""

    def piece(self, token: int) -> str:
        """The text of one id by itself."""

    def stats(self) -> SchedulerStats:
        """Counts so far."""

    async def close(self) -> None:
        """Finish what runs and end."""
