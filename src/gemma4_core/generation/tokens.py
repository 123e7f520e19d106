"""A checked prompt and the tokens that follow it, one sequence over a cache of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma4_core.engine.drafting import Drafting, DraftStats
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.rows import common_ids
from gemma4_core.engine.scheduler import TokenScheduler
from gemma4_core.engine.sequence import Choices, Sequence, Token
from gemma4_core.errors import InputError
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.ids import bound, check_ids
from gemma4_core.model.media import MediaTime, PlacedPrompt, place
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.slots import SlotStore


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
    drafts: DraftStats | None = None

    def follow(self, sequence: Sequence) -> None:
        """Take over what is known of a sequence now."""
        self.finish_reason = sequence.finish_reason
        self.prompt_seconds = sequence.first - sequence.admitted
        self.generation_seconds = max(time.perf_counter() - sequence.first, 0.0)
        self.drafts = sequence.drafting.stats if sequence.drafting is not None else None


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
    shared = common_ids(cache.tokens, placed.signature[:-1])
    while bound(placed.blocks, shared):
        shared -= 1
    return shared if cache.truncate(shared, max(model.chunk - model.operations.run_ahead, 0)) else 0


@dataclass(frozen=True)
class CacheLane:
    """A cache of one row, whose slots grow with the conversation."""

    cache: GemmaCache
    model: GemmaModel
    slot: int = 0

    @property
    def slots(self) -> SlotStore:
        """The cache's slots as they are now."""
        assert self.cache.storage is not None
        return self.cache.storage

    def reserve(self, positions: int) -> None:
        """Let the cache grow where it is too small."""
        self.cache.reserve(self.model, 1, positions)


def run(
    engine: Engine, prompt: CheckedPrompt, choices: Choices, stops: Iterable[int], progress: Generation,
    drafting: Drafting | None = None,
) -> Iterator[Token]:
    """Yield the tokens that follow a prompt; ``progress`` is updated on the way. Stops before yielding a stop id.

    This is a scheduler of one sequence over a cache of its own.
    """
    model, placed, cache, limit = engine.model, prompt.placed, prompt.cache, prompt.limit
    progress.prompt_tokens, progress.media = placed.ids.shape[1], dict(placed.times)
    progress.reused_tokens = common_prefix(model, cache, placed)
    if limit == 0:
        progress.finish_reason = "length"
        return
    # room for the tokens to come is reserved now, so that no buffer grows (and no graph is captured) on the way
    ahead = min(progress.prompt_tokens + limit - 1, max(progress.prompt_tokens + 1024, 2 * progress.prompt_tokens))
    lane = CacheLane(cache, model)
    lane.reserve(max(ahead, progress.prompt_tokens))
    sequence = Sequence(placed, limit, choices, frozenset(stops), drafting=drafting, lane=lane)
    scheduler = TokenScheduler(engine)
    scheduler.submit(sequence)
    while not scheduler.idle:
        for _, token in scheduler.step():
            progress.follow(sequence)
            if token is not None:
                progress.generated_tokens += 1
                yield token
    if sequence.error is not None:
        raise sequence.error
