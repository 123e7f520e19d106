"""Text out: parts of an answer as they come, with kind, finish reason and statistics."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gemma4_core.devices.memory import peak_memory_bytes
from gemma4_core.engine.engine import Engine
from gemma4_core.generation.sampling import Sampling
from gemma4_core.engine.sequence import Token
from gemma4_core.generation.tokens import CheckedPrompt, Generation, run
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
    """A piece of an answer. ``token`` and ``logprob`` are those of the id that completed it; the last part carries
    ``finish_reason`` (``stop``, ``length``, ``tool_call``) and ``stats``."""

    text: str
    kind: str = "text"
    token: int | None = None
    logprob: float | None = None
    tool_call: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    stats: Stats | None = None


def answer_stream(
    engine: Engine, prompt: CheckedPrompt, sampling: Sampling, stop_ids: Sequence[int], stops: StopStrings,
    splitter: AnswerSplitter | NoText, load_seconds: float,
) -> AnswerStream:
    """The answer to a checked prompt, part by part. ``stops`` end it and are left out, ``splitter`` makes text."""
    progress = Generation()
    tokens = run(engine, prompt, sampling.choices(), stop_ids, progress)

    def stats() -> Stats:
        return statistics(progress, load_seconds, engine.model.device)

    return AnswerStream(_parts(tokens, splitter, stops, progress, stats), stats)


class AnswerStream(Iterator[Part]):
    """The parts of an answer as they are made; ``close`` ends it early."""

    def __init__(self, parts: Generator[Part, None, None], stats: Callable[[], Stats]) -> None:
        self._parts, self._stats = parts, stats

    def __next__(self) -> Part:
        return next(self._parts)

    def close(self) -> None:
        """Make no further parts."""
        self._parts.close()

    @property
    def stats(self) -> Stats:
        """Counts and speeds so far, also of an answer that was ended early."""
        return self._stats()


class NoText:
    """An answer on a folder without a tokenizer: ids only."""

    def add(self, token: int) -> list[Any]:
        """No text."""
        return []

    def finish(self) -> list[Any]:
        """No text."""
        return []


def statistics(progress: Generation, load_seconds: float, device: str) -> Stats:
    """The statistics of a generation as far as it has come."""
    return Stats(
        progress.prompt_tokens,
        progress.reused_tokens,
        progress.generated_tokens,
        progress.prompt_seconds,
        progress.generation_seconds,
        load_seconds,
        peak_memory_bytes(device),
        progress.media,
    )


def _parts(
    tokens: Iterator[Token], splitter: AnswerSplitter | NoText, stops: StopStrings, progress: Generation,
    stats: Callable[[], Stats],
) -> Generator[Part, None, None]:
    stopped, called = False, False

    def pieces(found: Sequence[Any]) -> Iterator[Part]:
        nonlocal stopped, called
        for piece in found:
            text = piece.text
            if piece.kind == "text":
                text, stopped = stops.add(text)
            elif rest := stops.flush():
                yield Part(rest)
            called = called or piece.kind == "tool_call"
            if text or piece.kind == "tool_call":
                yield Part(text, piece.kind, tool_call=piece.tool_call)
            if stopped:
                return

    for token in tokens:
        first, *more = [*pieces(splitter.add(token.id))] or [Part("")]
        yield replace(first, token=token.id, logprob=token.logprob)
        yield from more
        if stopped:
            break
    if not stopped:
        yield from pieces(splitter.finish())
        if rest := stops.flush():
            yield Part(rest)
    reason = "stop" if stopped else progress.finish_reason
    reason = "tool_call" if called and reason == "stop" else reason
    yield Part("", finish_reason=reason, stats=stats())
