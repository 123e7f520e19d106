"""Text out: parts of an answer as they come, with kind, finish reason and statistics."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.devices.memory import peak_memory_bytes
from gemma4_core.errors import InputError
from gemma4_core.generation.sampling import Sampling
from gemma4_core.generation.tokens import Generation, Prepared, check_keywords, prepare, run
from gemma4_core.model.media import MediaTime
from gemma4_core.plugins import registry

if TYPE_CHECKING:
    from gemma4_core.model.cache import GemmaCache
    from gemma4_core.model.model import GemmaModel


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


def stream_generate(
    model: GemmaModel,
    prompt_or_messages: str | Sequence[Mapping[str, Any]] | None = None,
    max_new_tokens: int | None = None,
    *,
    prompt_tokens: Sequence[int] | None = None,
    cache: GemmaCache | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool = False,
    literal: bool = False,
    **media: Any,
) -> AnswerStream:
    """Yield the answer to a raw prompt (str) or to messages (through the folder's chat template), part by part.

    ``prompt_tokens`` are ids to start from instead of either, with one placeholder id per medium; they need no
    tokenizer, without which parts have no text. Of the parts that one token completes only the first carries it.
    With ``literal`` special tokens that are spelt in the prompt, in messages or in tools are text.
    Of ``tools``, calls that the model spells in another way than its own are calls too, where their arguments parse.
    ``media`` are lists by each modality's keyword, such as ``images`` and ``audio``. ``stop`` strings end the answer
    and are left out of it. Greedy unless a temperature is given. Raises InputError and TokenizerError before anything
    runs.
    """
    from gemma4_core.text import AnswerSplitter, StopStrings, has_text

    if (prompt_or_messages is None) == (prompt_tokens is None):
        raise InputError("give exactly one of prompt_or_messages and prompt_tokens")
    textless = not has_text(model.tokenizer)
    if textless and (prompt_tokens is None or stop):
        what = "a prompt of text" if prompt_tokens is None else f"the stop string {stop[0]!r}"
        raise InputError(f"{what} needs a tokenizer, {model.context.path} has none: give token ids (prompt_tokens=, "
                         f"--prompt-tokens)")
    if prompt_or_messages is not None and is_ids(prompt_or_messages):
        raise InputError("prompt_or_messages is a list of token ids: give them as prompt_tokens=")
    sampling = Sampling.of(
        temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    stops = StopStrings(stop)
    specs = registry.modalities.values()
    taken = [spec.media_keyword for spec in specs] + [option.keyword for spec in specs for option in spec.options]
    check_keywords(stream_generate, media, [*taken, "allow_urls"])
    if prompt_tokens is not None and not media:
        prepared = prepare(model, prompt_tokens, max_new_tokens, cache, {})
    else:
        asked: Any = prompt_or_messages if prompt_tokens is None else list(prompt_tokens)
        prompt = model.processor.prepare_inputs(asked, tools=tools, thinking=thinking, literal=literal, **media)
        prepared = prepare(model, prompt.input_ids, max_new_tokens, cache, dict(prompt.features))
    ids = prepared.placed.ids[0].tolist()
    splitter: Any = NoText()
    if model.tokenizer is not None and not textless:
        splitter = AnswerSplitter(model.tokenizer, ids, tools=tools)
    ends = model.stop_ids if stop_ids is None else tuple(stop_ids)
    progress = Generation()
    return AnswerStream(model, progress, _parts(model, prepared, sampling, ends, splitter, stops, progress))


def is_ids(value: Any) -> bool:
    """Whether somebody gave token ids where text or messages belong."""
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str | bytes) and value else value
    return isinstance(first, int | np.integer) or isinstance(value, np.ndarray)


class AnswerStream(Iterator[Part]):
    """The parts of an answer as they are made; ``close`` ends it early."""

    def __init__(self, model: GemmaModel, progress: Generation, parts: Generator[Part, None, None]) -> None:
        self._model, self._progress, self._parts = model, progress, parts

    def __next__(self) -> Part:
        return next(self._parts)

    def close(self) -> None:
        """Make no further parts."""
        self._parts.close()

    @property
    def stats(self) -> Stats:
        """Counts and speeds so far, also of an answer that was ended early."""
        return statistics(self._model, self._progress)


class NoText:
    """An answer on a folder without a tokenizer: ids only."""

    def add(self, token: int) -> list[Any]:
        """No text."""
        return []

    def finish(self) -> list[Any]:
        """No text."""
        return []


def statistics(model: GemmaModel, progress: Generation) -> Stats:
    """The statistics of a generation as far as it has come."""
    return Stats(
        progress.prompt_tokens,
        progress.reused_tokens,
        progress.generated_tokens,
        progress.prompt_seconds,
        progress.generation_seconds,
        model.load_seconds,
        peak_memory_bytes(model.device),
        progress.media,
    )


def _parts(
    model: GemmaModel, prepared: Prepared, sampling: Sampling, ends: Sequence[int], splitter: Any, stops: Any,
    progress: Generation,
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

    for token in run(model, prepared, sampling, ends, progress):
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
    yield Part("", finish_reason=reason, stats=statistics(model, progress))
