"""Decoding with many conversations at once, as ``Scheduler`` runs them.

All prompts run first. Then every conversation goes on from its slot, and the clock runs while all of them decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from gemma4_core.devices import free_memory_bytes
from gemma4_core.errors import InputError
from gemma4_core.formatting import human_bytes
from gemma4_core.generation.requests import Request
from gemma4_core.generation.scheduler import SHARE, Running, Scheduler
from gemma4_core.model.slots import slot_bytes

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel

WARM_TOKENS = 3
"""Tokens of each conversation's warm-up answer."""


def spare(batch: int) -> int:
    """Tokens that the first conversation may get before the last one begins: a step takes up two."""
    return batch // 2 + 4


def positions(length: int, count: int, batch: int) -> int:
    """Positions of a slot in which ``count`` tokens after a prompt of ``length`` are measured."""
    return length + max(count, WARM_TOKENS) + spare(batch)


def check_fits(model: LoadedModel, option: str, batch: int, context: int) -> None:
    """Raise InputError where memory does not hold so many slots, saying how many it holds."""
    size, free = slot_bytes(model, context), free_memory_bytes(model.device)
    if free is not None and batch * size > free:
        raise InputError(f"{option} {batch}: so many conversations of {context} tokens take "
                         f"{human_bytes(batch * size)} and {human_bytes(free)} are free; "
                         f"{int(free * SHARE // size)} would fit")


def finish(scheduler: Scheduler, running: Sequence[Running]) -> None:
    """Step until nothing is left. Raises InputError where a request failed."""
    while not scheduler.idle:
        scheduler.step()
    for one in running:
        if one.answer.error is not None:
            raise InputError(one.answer.error)


def submit(scheduler: Scheduler, prompts: Sequence[Sequence[int]], count: int) -> list[Running]:
    """A greedy request for each prompt, past stop ids."""
    return [scheduler.submit(Request(prompt_tokens=ids, max_new_tokens=count, ignore_eos=True)) for ids in prompts]


def decode(scheduler: Scheduler, prompts: Sequence[Sequence[int]], count: int) -> float:
    """Tokens per second of all conversations together, over ``count`` tokens of each."""
    finish(scheduler, submit(scheduler, prompts, 1))
    running = submit(scheduler, prompts, count + spare(len(prompts)))

    def lengths() -> list[int]:
        return [len(one.answer.tokens) for one in running]

    while not any(one.done for one in running) and not all(lengths()):
        scheduler.step()
    first, began = lengths(), perf_counter()
    while not any(one.done for one in running) and min(lengths()) - min(first) < count:
        scheduler.step()
    rate = (sum(lengths()) - sum(first)) / (perf_counter() - began)
    for one in running:
        one.cancel()
    finish(scheduler, running)
    return rate
