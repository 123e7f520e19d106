"""``Sequence``: all that is known of one answer while its tokens come. It touches no tensor but the prompt's media."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gemma4_core.contracts.rows import Rows
from gemma4_core.model.media import PlacedPrompt
from gemma4_core.model.slots import Held, SlotStore

if TYPE_CHECKING:
    from gemma4_core.engine.constraining import GuardedConstraint
    from gemma4_core.engine.drafting import Drafting

LogitsProcessor = Callable[[list[int], np.ndarray], np.ndarray]
"""Ids so far, prompt included, and fp32 logits ``[V]``, to the logits to choose from."""


class Lane(Protocol):
    """Where a sequence keeps its keys and values."""

    @property
    def slots(self) -> SlotStore:
        """The slots that it lies in."""

    @property
    def slot(self) -> int:
        """Its slot."""

    def reserve(self, positions: int) -> None:
        """Make room for so many positions in all."""


@dataclass(frozen=True)
class SlotLane:
    """A slot of a store whose slots have one size."""

    slots: SlotStore
    slot: int

    def reserve(self, positions: int) -> None:
        """The request was cut to what a slot holds when it came."""


@dataclass
class Choices:
    """How one sequence's tokens are chosen."""

    params: np.ndarray
    """fp32 ``[7]``; see ``SamplingRows``."""
    seed: int = 0
    bias: dict[int, float] = field(default_factory=dict)
    """What is added to the logits of some ids."""
    constraint: GuardedConstraint | None = None
    processors: list[LogitsProcessor] = field(default_factory=list)
    top_logprobs: int = 0
    """How many of the likeliest ids are told for each token."""

    @property
    def penalised(self) -> bool:
        """Whether the ids that occurred matter."""
        return bool(self.params[4] != 1 or self.params[5:].any())

    @property
    def on_host(self) -> bool:
        """Whether the host must see a choice before the next row may run."""
        return self.constraint is not None or self.wants_logits

    @property
    def wants_logits(self) -> bool:
        """Whether the host looks at the logits."""
        return bool(self.processors) or self.top_logprobs > 0


@dataclass(frozen=True)
class Token:
    """A chosen id with its log-probability under the model, and the likeliest ids with theirs, where asked for."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Sequence:
    """One prompt and its answer."""

    prompt: PlacedPrompt
    limit: int
    """Most tokens of the answer."""
    choices: Choices
    stops: frozenset[int] = frozenset()
    boundaries: tuple[int, ...] = ()
    """Where messages end in the prompt: beginnings that other prompts may share."""
    adapter: str | None = None
    """The adapter in force while it runs."""
    salt: str = ""
    """Beginnings are shared among sequences of equal salt alone."""
    deadline: float | None = None
    """Of ``time.monotonic()``."""
    drafting: Drafting | None = None
    lane: Lane | None = None

    tokens: list[int] = field(default_factory=list)
    """The ids chosen, without the stop id."""
    run: int = 0
    """How many of them were given to a step."""
    reused: int = 0
    """Prompt positions that the slot held or got from another one."""
    finish_reason: str | None = None
    error: Exception | None = None
    forced: bool = False
    """Whether the ids that its newest step checks had no choice, and are no drafter's."""
    cancelled: bool = False
    """Set from any thread; the scheduler sees it before its next step."""
    began: float = field(default_factory=time.perf_counter)
    """When it was submitted, got its slot, got its first token and its last, by ``time.perf_counter()``."""
    admitted: float = 0.0
    first: float = 0.0
    last: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """What besides ids must be equal where keys and values are shared."""
        return self.adapter, self.salt

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.prompt.ids.shape[1])

    @property
    def held(self) -> Held:
        """What its slot holds."""
        assert self.lane is not None
        return self.lane.slots.held[self.lane.slot]

    @property
    def filled(self) -> int:
        """Prompt positions that its slot holds."""
        return min(self.held.length, self.length)

    @property
    def decoding(self) -> bool:
        """Whether its prompt has run and tokens are wanted."""
        return self.lane is not None and self.finish_reason is None and self.first > 0

    @property
    def ids(self) -> list[int]:
        """Prompt and answer, the pad id where a soft token stands."""
        return [*self.prompt.ids[0].tolist(), *self.tokens]

    def note(self) -> None:
        """Record in the slot the chosen tokens whose rows were run."""
        done = self.held.length - self.length
        self.held.note(self.tokens[done : min(self.run, len(self.tokens))])

    def next_rows(self, draft: list[int] | None = None) -> Rows:
        """The newest token with what may follow it, each of which chooses. The id is 0 where it is still on the
        device."""
        lane, at = self.lane, self.length + self.run
        assert lane is not None
        ids = np.array([*(self.tokens[self.run : self.run + 1] or [0]), *(draft or [])], np.int32)
        lane.reserve(at + len(ids))
        self.held.written = max(self.held.written, at + len(ids))
        numbers = np.arange(len(ids), dtype=np.int32)
        return Rows(ids, np.full(len(ids), lane.slot, np.int32), at + numbers, numbers)
