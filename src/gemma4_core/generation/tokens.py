"""The token loop: prefill what the cache does not hold, then one captured step per token."""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.errors import InputError
from gemma4_core.generation.sampling import Sampling
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.ids import bound, check_ids, check_rows
from gemma4_core.model.media import MediaTime, Placed, place
from gemma4_core.ops.sampling import SamplingState
from gemma4_core.plugins import registry
from gemma4_core.plugins.options import refuse_unknown

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


@dataclass
class Generation:
    """One running generation: what is known of it while tokens come."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    finish_reason: str | None = None
    media: dict[str, MediaTime] = field(default_factory=dict)


@dataclass(frozen=True)
class Token:
    """A generated id with its log-probability under the model."""

    id: int
    logprob: float


def generate(
    model: GemmaModel,
    ids: Any,
    max_new_tokens: int | None = None,
    *,
    cache: GemmaCache | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop_ids: Sequence[int] | None = None,
    **media: Any,
) -> Iterator[int]:
    """Yield ids after the prompt ``ids`` (one row); greedy unless a temperature is given.

    Ends at a stop id (generation_config's unless ``stop_ids`` says otherwise; not yielded), after ``max_new_tokens``,
    or where the context is full. With a ``cache`` that holds a beginning of ``ids``, only the rest is run. Media
    keywords are those of ``forward_ids``. Raises InputError before anything runs.
    """
    sampling = Sampling.of(
        temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed
    )
    check_keywords(generate, media, (keyword for spec in registry.modalities.values() for keyword in spec.keywords))
    prepared = prepare(model, ids, max_new_tokens, cache, media)
    stops = model.stop_ids if stop_ids is None else tuple(stop_ids)
    tokens = run(model, prepared, sampling, stops, Generation())
    return (token.id for token in tokens)


def check_keywords(function: Callable[..., Any], given: Mapping[str, Any], more: Iterable[str]) -> None:
    """Raise InputError for a keyword that is neither the function's own nor one of ``more``."""
    if given:
        own = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
        refuse_unknown(f"option of {function.__name__}", given, {*own, "max_new_tokens", *more})


@dataclass(frozen=True)
class Prepared:
    """A checked prompt, the cache to run it in, and how many new tokens may come."""

    placed: Placed
    cache: GemmaCache
    limit: int


def prepare(
    model: GemmaModel, ids: Any, max_new_tokens: int | None, cache: GemmaCache | None, media: dict[str, Any]
) -> Prepared:
    """Check a prompt against vocabulary, context and media; nothing runs but the towers."""
    array = check_ids(ids, model.config.text_config.vocab_size)
    if array.shape[0] != 1:
        raise InputError(f"generate takes one row of token ids, got {array.shape[0]}")
    if max_new_tokens is not None and (isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int)):
        raise InputError(f"max_new_tokens {max_new_tokens!r}: must be a whole number from 0")
    if max_new_tokens is not None and max_new_tokens < 0:
        raise InputError(f"max_new_tokens {max_new_tokens}: must be a whole number from 0")
    model.settle()
    cache = cache if cache is not None else model.make_cache()
    context = cache.context(model)
    length = array.shape[1]
    if length > context:
        raise InputError(
            f"the prompt has {length} tokens, {length - context} more than the context of {context}: "
            "shorten it or raise --context (max_context)"
        )
    room = context - length + 1  # the last token is chosen but never run
    return Prepared(
        place(model, array, media, capture=True), cache, room if max_new_tokens is None else min(max_new_tokens, room)
    )


def common_prefix(model: GemmaModel, cache: GemmaCache, placed: Placed) -> int:
    """How many leading positions of the prompt the cache holds; the cache is cut to them. At least one position is
    left to run, and a bidirectional media block is not entered halfway. Steps that were queued ahead of a stop have
    written positions that the cache does not count, so a ring can be wound back by so many less. Nothing is shared
    with a cache that was filled before weights changed."""
    if cache.length and cache.revision != model.weights_revision:
        cache.reset()
    signature = placed.signature
    shared = 0
    for held, wanted in zip(cache.tokens, signature[:-1], strict=False):
        if held != wanted:
            break
        shared += 1
    while bound(placed.blocks, shared):
        shared -= 1
    return shared if cache.truncate(shared, max(model.chunk - model.operations.run_ahead, 0)) else 0


def run(
    model: GemmaModel, prepared: Prepared, sampling: Sampling, stops: Sequence[int], progress: Generation
) -> Iterator[Token]:
    """Prefill, then yield tokens; ``progress`` is kept up to date. Stops before yielding a stop id."""
    placed, cache, limit = prepared.placed, prepared.cache, prepared.limit
    progress.prompt_tokens, progress.media = placed.ids.shape[1], dict(placed.times)
    progress.reused_tokens = common_prefix(model, cache, placed)
    if limit == 0:
        progress.finish_reason = "length"
        return
    began = time.perf_counter()
    # room for the tokens to come is reserved now, so that no buffer grows (and no graph is captured) on the way
    ahead = min(progress.prompt_tokens + limit - 1, max(progress.prompt_tokens + 1024, 2 * progress.prompt_tokens))
    cache.reserve(model, 1, ahead)
    state = sampling.state(model.config.text_config.vocab_size, placed.ids[0].tolist(), model.device)
    hidden = model.append(cache, placed, skip=progress.reused_tokens)
    token, logprob = model.engine.first_token(hidden, cache.length, state)
    chosen = Token(int(token.item()), float(logprob.item()))
    progress.prompt_seconds = time.perf_counter() - began
    yield from _decode(model, prepared, state, stops, progress, token, chosen)


def _decode(
    model: GemmaModel,
    prepared: Prepared,
    state: SamplingState | None,
    stops: Sequence[int],
    progress: Generation,
    token: Tensor,
    chosen: Token,
) -> Iterator[Token]:
    """The loop proper: where the device runs ahead, the steps of later tokens are queued before this one's is read."""
    cache, limit = prepared.cache, prepared.limit
    began = time.perf_counter()
    waiting: deque[tuple[Tensor, Tensor]] = deque()
    issued, ahead = 0, 0
    text = model.config.text_config
    every_id_runs = text.usable_ids == text.vocab_size
    while True:
        if chosen.id in stops:
            progress.finish_reason = "stop"
            return
        progress.generated_tokens += 1
        progress.generation_seconds = time.perf_counter() - began
        if progress.generated_tokens >= limit:
            progress.finish_reason = "length"
            yield chosen
            return
        if not every_id_runs:
            check_rows(np.array([chosen.id]), text)
        while issued < limit - 1 and len(waiting) <= ahead:
            position = cache.length + len(waiting)
            step = model.engine.decode_step(cache.reserve(model, 1, position + 1), state)
            # an id without a row must be seen before a step reads that row
            ahead = getattr(step, "ahead", 0) if every_id_runs else 0
            waiting.append(step(token, position, state))
            token, issued = waiting[-1][0], issued + 1
        cache.note([chosen.id])
        yield chosen
        chosen = _read(waiting.popleft())


def _read(issued: tuple[Tensor, Tensor]) -> Token:
    """What a step chose; waits for it. A device that runs ahead has its own way, which waits for no later step."""
    own = getattr(issued, "read", None)
    return Token(*own()) if own is not None else Token(int(issued[0].item()), float(issued[1].item()))
