"""Requests that arrive by the clock while others are answered, and how long people would wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.generation.requests import Request
from gemma4_core.generation.scheduler import Running, Scheduler
from gemma4_plugins.commands.bench.speed import prompt_ids
from gemma4_plugins.commands.bench.together import WARM_TOKENS, check_fits, decode, spare

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel

Span = tuple[int, int]
"""The least and the most of a number that is drawn for each request."""


@dataclass(frozen=True)
class Load:
    """What arrives: so many requests, ``rate`` of them a second on average, all at once where that is 0."""

    parallel: int
    requests: int
    rate: float
    prompts: Span
    answers: Span
    shared: int = 0
    """Tokens that all prompts begin with, besides those of ``prompts``; they end as a message does."""
    seed: int = 0

    @property
    def positions(self) -> int:
        """Positions of a slot."""
        return self.shared + self.prompts[1] + max(self.answers[1], WARM_TOKENS + spare(self.parallel))


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, in seconds from the beginning, and what it asks for."""

    at: float
    prompt: list[int]
    answer: int


@dataclass
class Waits:
    """What was measured."""

    seconds: float = 0.0
    """From the first arrival to the last token."""
    first: list[float] = field(default_factory=list)
    """Seconds from each request's arrival to its first token."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of an answer."""
    tokens: int = 0
    prompt_tokens: int = 0
    """Of all prompts, also those that were not run because a slot held them."""
    reused_tokens: int = 0
    prefix_hits: int = 0
    """Prompts that went on from a beginning which a slot held."""


def arrivals(model: LoadedModel, load: Load) -> list[Arrival]:
    """The requests of a load, the same for the same seed. Times between them are exponential."""
    rng = np.random.default_rng(load.seed)
    times = np.cumsum(rng.exponential(1 / load.rate, load.requests)) if load.rate else np.zeros(load.requests)
    lengths, answers = (rng.integers(low, high + 1, load.requests) for low, high in (load.prompts, load.answers))
    ids = text_ids(model, load.shared + int(lengths.sum()), load.seed)
    beginning = message(model, ids, load.shared)
    return [Arrival(float(at - times[0]), beginning + [next(ids) for _ in range(length)], int(answer))
            for at, length, answer in zip(times, lengths, answers, strict=True)]


def text_ids(model: LoadedModel, count: int, seed: int) -> Iterator[int]:
    """Random ids in which no message ends."""
    config = model.config
    ends = set(config.eos_token_ids)
    return (config.pad_token_id if token in ends else token for token in prompt_ids(model, count, seed))


def message(model: LoadedModel, ids: Iterator[int], count: int) -> list[int]:
    """So many ids that end as a message does, so that a snapshot is taken there."""
    found = [next(ids) for _ in range(count)]
    ends = sorted(model.config.eos_token_ids)
    return [*found[:-1], ends[-1]] if found and ends else found


def measure(model: LoadedModel, load: Load, tell: Callable[[str], Any] = lambda text: None) -> Waits:
    """Answer a load's requests as they arrive; ``tell`` is called with a line now and then.

    Everything is compiled and captured before the first one. Raises InputError where memory does not hold so many
    conversations, or a request fails.
    """
    check_fits(model, "--parallel", load.parallel, load.positions)
    with Scheduler(model, load.parallel, load.positions) as scheduler:
        tell("warming up")
        warm_up(model, scheduler, load)
        return answer(scheduler, arrivals(model, load), tell)


def warm_up(model: LoadedModel, scheduler: Scheduler, load: Load) -> None:
    """Run as many conversations at once as there may be, of which all but the first copy a beginning."""
    ids = text_ids(model, load.shared + load.parallel * load.prompts[1], load.seed + 1)
    beginning = message(model, ids, load.shared)
    prompts = [beginning + [next(ids) for _ in range(load.prompts[1])] for _ in range(load.parallel)]
    decode(scheduler, prompts, WARM_TOKENS)


def answer(scheduler: Scheduler, coming: Sequence[Arrival], tell: Callable[[str], Any]) -> Waits:
    """Step while requests come, and note when their tokens do."""
    found, before = Waits(), scheduler.stats()
    arrived: dict[Running, Arrival] = {}
    latest: dict[Running, float] = {}
    waiting, done, began = list(reversed(coming)), 0, time.perf_counter()
    while waiting or not scheduler.idle:
        now = time.perf_counter() - began
        while waiting and waiting[-1].at <= now:
            one = waiting.pop()
            request = Request(prompt_tokens=one.prompt, max_new_tokens=one.answer, ignore_eos=True)
            arrived[scheduler.submit(request)] = one
        if scheduler.idle:
            time.sleep(max(waiting[-1].at - now, 0.0))
            continue
        parts = scheduler.step()
        now = time.perf_counter() - began
        for running, part in parts:
            if part.error is not None:
                raise InputError(part.error)
            if part.token is not None:
                if running in latest:
                    found.gaps.append(now - latest[running])
                else:
                    found.first.append(now - arrived[running].at)
                latest[running] = now
            if part.finish_reason is not None:
                done += 1
                tell(f"{done} of {len(coming)} requests answered")
    after = scheduler.stats()
    found.seconds = time.perf_counter() - began
    found.tokens = after.generated_tokens - before.generated_tokens
    found.prompt_tokens = sum(len(one.prompt) for one in coming)
    found.reused_tokens = after.reused_tokens - before.reused_tokens
    found.prefix_hits = after.prefix_hits - before.prefix_hits
    return found
