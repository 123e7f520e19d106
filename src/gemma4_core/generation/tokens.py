"""A checked prompt and the tokens that follow it, one sequence over a cache of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_core.engine.drafting import Drafting
from gemma4_core.engine.engine import Engine
from gemma4_core.engine.rows import common_ids
from gemma4_core.engine.scheduler import TokenScheduler
from gemma4_core.engine.sequence import Choices, Sequence, Token
from gemma4_core.errors import InputError
from gemma4_core.generation.adapters import adapter_in_force
from gemma4_core.generation.sampling import Sampling
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.ids import bound, check_ids
from gemma4_core.model.media import PlacedPrompt, place
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.slots import SlotStore


@dataclass(frozen=True)
class CheckedPrompt:
    """A sequence that fits the model, and the cache to run it in."""

    sequence: Sequence
    cache: GemmaCache

    @property
    def placed(self) -> PlacedPrompt:
        """The prompt with its media in their places."""
        return self.sequence.prompt


def check_prompt(
    model: GemmaModel, ids: Any, max_new_tokens: int | None, cache: GemmaCache | None, media: Mapping[str, Any],
    choices: Choices | None = None, stops: Iterable[int] = (), drafting: Drafting | None = None,
) -> CheckedPrompt:
    """Check a prompt against vocabulary, context and media. Nothing runs but the towers. Raises InputError."""
    model.invalidate_if_trained()
    cache = cache if cache is not None else model.make_cache()
    made = make_sequence(
        model, ids, max_new_tokens, cache.context(model), media, choices or Sampling().choices(), stops
    )
    made.drafting = drafting
    return CheckedPrompt(made, cache)


def make_sequence(
    model: GemmaModel, ids: Any, max_new_tokens: int | None, context: int, media: Mapping[str, Any], choices: Choices,
    stops: Iterable[int] = (),
) -> Sequence:
    """A sequence for at most ``context`` positions. Raises InputError where its prompt does not fit."""
    vocabulary = model.config.text_config.vocab_size
    array = check_ids(ids, vocabulary)
    if array.shape[0] != 1:
        raise InputError(f"generate takes one row of token ids, got {array.shape[0]}")
    if max_new_tokens is not None and (isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int)):
        raise InputError(f"max_new_tokens {max_new_tokens!r}: must be a whole number from 0")
    if max_new_tokens is not None and max_new_tokens < 0:
        raise InputError(f"max_new_tokens {max_new_tokens}: must be a whole number from 0")
    length = array.shape[1]
    if length > context:
        raise InputError(
            f"the prompt has {length} tokens, {length - context} more than the context of {context}: "
            "shorten it or raise --context (max_context)"
        )
    for token in choices.bias:
        if not 0 <= token < vocabulary:
            raise InputError(f"logit_bias: {token} is outside the vocabulary of {vocabulary} (0 to {vocabulary - 1})")
    room = context - length + 1  # the last token is chosen but never run
    limit = room if max_new_tokens is None else min(max_new_tokens, room)
    placed = place(model, array, media, capture=True)
    return Sequence(placed, limit, choices, frozenset(stops), shared_ends(model, placed))


def shared_ends(model: GemmaModel, placed: PlacedPrompt) -> tuple[int, ...]:
    """Where a prompt's first and last message end: what other conversations share (a system prompt, tools, documents),
    and what this one goes on from when its next message comes."""
    marks = frozenset(model.config.eos_token_ids)
    ends = [i + 1 for i, token in enumerate(placed.signature[:-1]) if token in marks]
    return tuple(sorted({ends[0], ends[-1]})) if ends else ()


def common_prefix(model: GemmaModel, cache: GemmaCache, placed: PlacedPrompt) -> int:
    """How many leading positions of the prompt the cache holds; the cache is cut to them. At least one position is
    left to run, and a bidirectional media block is not entered halfway. Nothing is shared with a cache that was filled
    before weights changed."""
    if cache.length and cache.revision != model.weights_revision:
        cache.reset()
    shared = common_ids(cache.tokens, placed.signature[:-1])
    while bound(placed.blocks, shared):
        shared -= 1
    return shared if cache.truncate(shared) else 0


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


def run(engine: Engine, prompt: CheckedPrompt) -> Iterator[Token]:
    """Yield the tokens that follow a prompt; its sequence tells how far it has come. Stops before yielding a stop id.

    This is a scheduler of one sequence over a cache of its own.
    """
    model, sequence, cache = engine.model, prompt.sequence, prompt.cache
    with adapter_in_force(model, sequence.adapter):
        yield from _run(engine, sequence, cache)


def _run(engine: Engine, sequence: Sequence, cache: GemmaCache) -> Iterator[Token]:
    model = engine.model
    sequence.reused = common_prefix(model, cache, sequence.prompt)
    if sequence.limit == 0:
        sequence.finish_reason = "length"
        return
    # room for the tokens to come is reserved now, so that no buffer grows (and no graph is captured) on the way
    length = sequence.length
    ahead = min(length + sequence.limit - 1, max(length + 1024, 2 * length))
    sequence.lane = CacheLane(cache, model)
    sequence.lane.reserve(max(ahead, length))
    scheduler = TokenScheduler(engine)
    scheduler.submit(sequence)
    while not scheduler.idle:
        for _, token in scheduler.step():
            if token is not None:
                yield token
    if sequence.error is not None:
        raise sequence.error
