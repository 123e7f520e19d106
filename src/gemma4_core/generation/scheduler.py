"""``Scheduler``: many requests at once. ``answer_all`` is a loop around it, a server is one too."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gemma4_core.devices import free_memory_bytes
from gemma4_core.engine.prefix import PrefixStore
from gemma4_core.engine.scheduler import TokenScheduler
from gemma4_core.engine.sequence import Sequence, Token
from gemma4_core.errors import DeviceError, Gemma4Error, InputError
from gemma4_core.formatting import shown
from gemma4_core.generation.adapters import AdapterSwitch
from gemma4_core.generation.answers import Answer
from gemma4_core.generation.parts import AnswerParts, Part, statistics
from gemma4_core.generation.requests import Request
from gemma4_core.generation.tokens import make_sequence
from gemma4_core.model.slots import slot_bytes
from gemma4_core.plugins.origin import describe

if TYPE_CHECKING:
    from gemma4_core.generation.text_model import TextModel

USUAL_CONTEXT = 8192
"""Positions of a slot where nothing else is asked for."""
MOST_PARALLEL = 256
SHARE = 0.8
"""The part of free memory that ``parallel="auto"`` takes."""
PREFIX_SHARE = 0.25
"""The part of the slots' memory that snapshots of shared beginnings may take, where nothing else is asked for."""


@dataclass(frozen=True)
class SchedulerStats:
    """Counts since a scheduler was made."""

    waiting: int
    running: int
    slots: int
    slots_used: int
    steps: int
    decoded_rows: int
    """Rows of tokens, those of drafts included."""
    prompt_tokens: int
    generated_tokens: int
    prefix_hits: int
    prefix_misses: int
    reused_tokens: int
    snapshots: int


class Running:
    """A request that was submitted. ``answers`` fill up while the scheduler steps."""

    def __init__(self, request: Request, number: int) -> None:
        self.request, self.number = request, number
        self.answers = [Answer(choice=choice) for choice in range(request.n)]
        self._cancelled = threading.Event()
        self.prepared: Any = None
        """Ids and features, or the error that preparing them raised."""
        self.began = time.perf_counter()
        self.deadline = None if request.deadline is None else time.monotonic() + request.deadline
        self.sequences: list[Sequence] = []

    def cancel(self) -> None:
        """End its answers before the next step; from any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._cancelled.is_set()

    @property
    def answer(self) -> Answer:
        """Its answer, the first of several."""
        return self.answers[0]

    @property
    def done(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.finish_reason is not None for answer in self.answers)


@dataclass(eq=False)
class _Choice:
    """One answer of a running request."""

    running: Running
    number: int
    sequence: Sequence
    parts: AnswerParts
    tokens: int = 0


class Scheduler:
    """Answers many requests at once, each in a slot of its own.

    ::

        scheduler = Scheduler(model, parallel=8, context=8192)
        running = scheduler.submit(Request(prompt="Once upon a time", max_new_tokens=64))
        while not running.done:
            for one, part in scheduler.step():
                print(part.text, end="")

    ``submit`` and ``Running.cancel`` may be called from any thread; ``step`` and ``close`` belong to one.

    Args:
        model: what ``load_pretrained`` returned.
        parallel: how many requests run at once; ``auto`` is as many as fit into free memory.
        context: positions of a slot, for a prompt with its answer, at most the model's context; None is 8192 at most.
        prefix_bytes: device memory for beginnings that prompts share; None is a quarter of the slots'.

    Raises:
        InputError: ``parallel`` below 1 or more than memory holds, ``context`` below 1.
    """

    def __init__(
        self, model: TextModel, parallel: int | str = "auto", context: int | None = None,
        prefix_bytes: int | None = None,
    ) -> None:
        self.model = model
        model.invalidate_if_trained()
        self.context = slot_context(model, context)
        size = slot_bytes(model, self.context)
        self.parallel = slot_count(model, parallel, size, prefix_bytes)
        snapshots = snapshot_count(self.parallel, size, prefix_bytes)
        self._slots = model.pool.take(model, self.parallel + snapshots, self.context).current(model)
        self._prefixes = PrefixStore(self._slots, self.parallel, snapshots)
        self._adapters = AdapterSwitch(model)
        self._tokens = TokenScheduler(
            model.engine, self._slots, self._prefixes, self.parallel, switch=self._adapters.use
        )
        self._arrived: deque[Running] = deque()
        self._choices: dict[Sequence, _Choice] = {}
        self._preparing = threading.Lock()
        self._submitted = 0
        self._closed = False

    # ------------------------------------------------------------------------------------------- from any thread

    def submit(self, request: Request) -> Running:
        """Queue a request. Its text is prepared at once, in the calling thread, and what its constraint is built from
        is compiled; what cannot be prepared comes back from ``step`` as its answer's error. Raises InputError where the
        scheduler is closed."""
        if self._closed:
            raise InputError("the scheduler is closed")
        with self._preparing:
            running = Running(request, self._submitted)
            self._submitted += 1
            try:
                request.check_text(self.model)
                running.prepared = request.inputs(self.model)
            except Gemma4Error as error:
                running.prepared = error
        try:
            request.check_constraint(self.model)
        except Exception as error:  # whatever a constraint raises
            running.prepared = error
        self._arrived.append(running)
        return running

    # ------------------------------------------------------------------------------------------- from one thread

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._arrived and self._tokens.idle

    def step(self) -> list[tuple[Running, Part]]:
        """Run what there is to run once. The parts of all requests that it completed, each with what ``submit`` gave;
        the last part of an answer has its ``finish_reason``. Empty when there is nothing to do."""
        if self._closed:
            raise InputError("the scheduler is closed")
        found: list[tuple[Running, Part]] = []
        while self._arrived:
            found += self._admit(self._arrived.popleft())
        for choice in self._choices.values():
            choice.sequence.cancelled |= choice.running.cancelled
        for sequence, token in self._tokens.step():
            found += self._take(sequence, token)
        for running, part in found:
            running.answers[part.choice].take(part)
        return found

    def stats(self) -> SchedulerStats:
        """Counts so far."""
        counts, prefixes = self._tokens.counts, self._prefixes.stats
        return SchedulerStats(
            len(self._arrived) + len(self._tokens.waiting), len(self._tokens.active), self.parallel,
            sum(self._slots.held[slot].claimed for slot in range(self.parallel)), counts.steps, counts.rows,
            counts.prompt_tokens, counts.generated_tokens, prefixes.hits, prefixes.misses, prefixes.reused_tokens,
            prefixes.snapshots,
        )

    def close(self) -> None:
        """End what runs and give the slots back. Answers that had not ended are ``cancelled``."""
        if self._closed:
            return
        self._closed = True
        for running in [*self._arrived, *(choice.running for choice in self._choices.values())]:
            for answer in running.answers:
                answer.finish_reason = answer.finish_reason or "cancelled"
        self._arrived.clear()
        self._choices.clear()
        self._adapters.use(None)
        self.model.pool.give(self._slots)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- inside

    def _admit(self, running: Running) -> list[tuple[Running, Part]]:
        """Turn a request into sequences; its towers run here, between steps."""
        request = running.request
        try:
            if isinstance(running.prepared, Exception):
                raise running.prepared
            ids, features = running.prepared
            self._adapters.check(request.adapter)
            for number in range(request.n):
                sequence = make_sequence(
                    self.model, ids, request.max_new_tokens, self.context, features,
                    request.choices(number), request.ends(self.model),
                )
                sequence.choices.constraint = request.constrained(self.model, sequence.ids, sequence.limit)
                sequence.drafting = request.drafting(self.model)
                sequence.adapter, sequence.salt = request.adapter, request.salt
                sequence.deadline = running.deadline
                sequence.began = running.began
                running.sequences.append(sequence)
        except Exception as error:  # whatever a constraint or a drafter raises, the other requests go on
            said = str(error) if isinstance(error, Gemma4Error) else describe(error)
            last = Part("", finish_reason="cancelled", error=said, fault=is_fault(error))
            return [(running, replace(last, choice=number)) for number in range(request.n)]
        found = []
        for number, sequence in enumerate(running.sequences):
            choice = _Choice(running, number, sequence, request.parts(self.model, sequence.ids))
            self._choices[sequence] = choice
            if sequence.limit == 0:
                sequence.finish_reason = "length"
                found += self._take(sequence, None)
            else:
                self._tokens.submit(sequence)
        return found

    def _take(self, sequence: Sequence, token: Token | None) -> list[tuple[Running, Part]]:
        """The parts that a token, or the end of its sequence, completes."""
        choice = self._choices.get(sequence)
        if choice is None:  # a stop string has ended it already
            return []
        if token is not None:
            choice.tokens += 1
            parts = choice.parts.token(token)
            if choice.parts.stopped:
                self._tokens.finish(sequence, "stop")
                parts += self._last(choice)
        else:
            parts = [*choice.parts.end(sequence.finish_reason), *self._last(choice)]
        return [(choice.running, replace(part, choice=choice.number)) for part in parts]

    def _last(self, choice: _Choice) -> list[Part]:
        sequence = choice.sequence
        del self._choices[sequence]
        stats = statistics(sequence, choice.tokens, self.model.load_seconds, self.model.device)
        error = None if sequence.error is None else str(sequence.error)
        reason, fault = choice.parts.reason(sequence.finish_reason), is_fault(sequence.error)
        stop = choice.parts.stops.found
        return [Part("", finish_reason=reason, stats=stats, error=error, fault=fault, stop=stop)]


def is_fault(error: Exception | None) -> bool:
    """Whether an error tells of the machine or the program, not of what was asked."""
    return error is not None and (isinstance(error, DeviceError) or not isinstance(error, Gemma4Error))


def slot_context(model: TextModel, context: int | None) -> int:
    """Positions of a slot, at most the model's context. Raises InputError for anything but a whole number from 1."""
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise InputError(f"context {shown(context)}: must be a whole number from 1")
    return min(USUAL_CONTEXT if context is None else context, model.max_context)


def snapshot_count(parallel: int, size: int, prefix_bytes: int | None) -> int:
    """Slots of ``size`` bytes for shared beginnings, beside so many for requests."""
    if prefix_bytes is not None:
        return min(max(prefix_bytes, 0) // size, MOST_PARALLEL)
    return max(int(parallel * PREFIX_SHARE), 1) if parallel > 1 else 0


def slot_count(model: TextModel, parallel: int | str, size: int, prefix_bytes: int | None = None) -> int:
    """How many requests run at once in slots of ``size`` bytes. Raises InputError for a number below 1, and for one
    that free memory does not hold together with its snapshots."""
    free = free_memory_bytes(model.device)
    room = None if free is None else int(free * SHARE // size)
    fits = MOST_PARALLEL if room is None else next(
        (n for n in range(MOST_PARALLEL, 0, -1) if n + snapshot_count(n, size, prefix_bytes) <= room), 0
    )
    if parallel == "auto":
        if fits < 1:
            raise InputError(f"a slot takes {size >> 20} MiB, more than is free; ask for a smaller context (--context)")
        return fits
    if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
        raise InputError(f"parallel {shown(parallel)}: must be a whole number from 1, or auto")
    if free is not None and (parallel + snapshot_count(parallel, size, prefix_bytes)) * size > free:
        raise InputError(f"parallel {parallel}: {parallel} slots of {size >> 20} MiB do not fit into {free >> 20} MiB "
                         f"of free memory; {max(fits, 0)} would, or ask for a smaller context (--context)")
    return parallel


def answer_all(
    model: TextModel, requests: Iterable[Any], parallel: int | str, context: int | None
) -> Iterator[tuple[int, Answer]]:
    """See ``LoadedModel.answer_all``."""
    scheduler = Scheduler(model, parallel, context)
    return _answers(scheduler, iter(requests))


def _answers(scheduler: Scheduler, requests: Iterator[Any]) -> Iterator[tuple[int, Answer]]:
    numbers: dict[Running, int] = {}
    more, count = True, 0
    with scheduler:
        while more or not scheduler.idle:
            while more and len(numbers) < 2 * scheduler.parallel:
                try:
                    given = next(requests)
                except StopIteration:
                    more = False
                    break
                try:
                    running = scheduler.submit(Request.of(given))
                except Gemma4Error as error:
                    yield count, Answer(finish_reason="cancelled", error=str(error))
                else:
                    numbers[running] = count
                count += 1
            parts = scheduler.step()
            for running, part in parts:
                if part.finish_reason is not None:
                    yield numbers[running], running.answers[part.choice]
            for running in {running for running, _ in parts if running.done}:
                del numbers[running]
