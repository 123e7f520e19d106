"""``AnswerStream``: one answer as it is made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from gemma4_core.engine.engine import Engine
from gemma4_core.generation.parts import AnswerParts, Part, Stats, statistics
from gemma4_core.generation.tokens import CheckedPrompt, run


def answer_stream(engine: Engine, prompt: CheckedPrompt, answer: AnswerParts, load_seconds: float) -> AnswerStream:
    """The answer to a checked prompt, part by part."""
    sequence, count = prompt.sequence, 0

    def stats() -> Stats:
        return statistics(sequence, count, load_seconds, engine.model.device)

    def parts() -> Generator[Part, None, None]:
        nonlocal count
        for token in run(engine, prompt):
            count += 1
            yield from answer.token(token)
            if answer.stopped:
                break
        yield from answer.end(sequence.finish_reason)
        yield Part("", finish_reason=answer.reason(sequence.finish_reason), stats=stats(), stop=answer.stops.found)

    return AnswerStream(parts(), stats)


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
