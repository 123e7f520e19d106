"""The token loop: prefill what the cache does not hold, then one captured step per token."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.engine.engine import Engine
from gemma4_core.errors import InputError
from gemma4_core.generation.sampling import Sampling
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.ids import bound, check_ids, check_rows
from gemma4_core.model.media import MediaTime, PlacedPrompt, place
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops.sampling import SamplingState


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


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt that fits the model, the cache to run it in, and how many new tokens may come."""

    placed: PlacedPrompt
    cache: GemmaCache
    limit: int

    @property
    def ids(self) -> list[int]:
        """The prompt's ids, the pad id where a soft token stands."""
        found: list[int] = self.placed.ids[0].tolist()
        return found


def check_prompt(
    model: GemmaModel, ids: Any, max_new_tokens: int | None, cache: GemmaCache | None, media: Mapping[str, Any]
) -> CheckedPrompt:
    """Check a prompt against vocabulary, context and media. Nothing runs but the towers. Raises InputError."""
    array = check_ids(ids, model.config.text_config.vocab_size)
    if array.shape[0] != 1:
        raise InputError(f"generate takes one row of token ids, got {array.shape[0]}")
    if max_new_tokens is not None and (isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int)):
        raise InputError(f"max_new_tokens {max_new_tokens!r}: must be a whole number from 0")
    if max_new_tokens is not None and max_new_tokens < 0:
        raise InputError(f"max_new_tokens {max_new_tokens}: must be a whole number from 0")
    model.invalidate_if_trained()
    cache = cache if cache is not None else model.make_cache()
    context = cache.context(model)
    length = array.shape[1]
    if length > context:
        raise InputError(
            f"the prompt has {length} tokens, {length - context} more than the context of {context}: "
            "shorten it or raise --context (max_context)"
        )
    room = context - length + 1  # the last token is chosen but never run
    limit = room if max_new_tokens is None else min(max_new_tokens, room)
    return CheckedPrompt(place(model, array, media, capture=True), cache, limit)


def common_prefix(model: GemmaModel, cache: GemmaCache, placed: PlacedPrompt) -> int:
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
    engine: Engine, prompt: CheckedPrompt, sampling: Sampling, stops: Sequence[int], progress: Generation
) -> Iterator[Token]:
    """Prefill, then yield tokens; ``progress`` is updated on the way. Stops before yielding a stop id."""
    model, placed, cache, limit = engine.model, prompt.placed, prompt.cache, prompt.limit
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
    hidden = engine.append_prompt(cache, placed, progress.reused_tokens)
    token, logprob = engine.first_token(hidden, cache.length, state)
    chosen = Token(int(token.item()), float(logprob.item()))
    progress.prompt_seconds = time.perf_counter() - began
    yield from _decode(engine, prompt, state, stops, progress, token, chosen)


def _decode(
    engine: Engine,
    prompt: CheckedPrompt,
    state: SamplingState | None,
    stops: Sequence[int],
    progress: Generation,
    token: Tensor,
    chosen: Token,
) -> Iterator[Token]:
    """The loop proper: where the device runs ahead, the steps of later tokens are queued before this one's is read."""
    model, cache, limit = engine.model, prompt.cache, prompt.limit
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
            step = engine.decode_step(cache.reserve(model, 1, position + 1), state)
            # an id without a row must be seen before a step reads that row
            ahead = getattr(step, "ahead", 0) if every_id_runs else 0
            waiting.append(step(token, position, state))
            token, issued = waiting[-1][0], issued + 1
        cache.note([chosen.id])
        yield chosen
        chosen = _read(waiting.popleft())


def _read(issued: tuple[Tensor, Tensor]) -> Token:
    """What a step chose; waits for it. A device that runs ahead brings ``read``, which waits for no later step."""
    read = getattr(issued, "read", None)
    return Token(*read()) if read is not None else Token(int(issued[0].item()), float(issued[1].item()))
