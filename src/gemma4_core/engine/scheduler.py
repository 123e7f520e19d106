"""``TokenScheduler``: many sequences in one step. It decides which rows run; the engine runs them.

A step gives one row to each sequence that is decoding (more where drafts are checked) and what is left of its budget to
at most two prompts, the oldest first. A sequence gets a slot when one is free and keeps it to its end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.contracts.steps import StepResult
from gemma4_core.engine.admission import Admission
from gemma4_core.engine.choices import SamplingTable, host_choice, top_tokens
from gemma4_core.engine.engine import Engine, Several
from gemma4_core.engine.prefix import PrefixStore
from gemma4_core.engine.prompts import Prompts
from gemma4_core.engine.proposals import Proposals
from gemma4_core.engine.rows import greedy_rows, joined
from gemma4_core.engine.sequence import Sequence, Token
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.model.ids import check_rows
from gemma4_core.model.slots import SlotStore
from gemma4_core.ops.steps import Hidden

PROMPTS = 2
"""Prompts that get rows in one step, where each is a call of its own."""

Event = tuple[Sequence, Token | None]
"""A token of a sequence, or None where it has ended; ``finish_reason`` says why."""


@dataclass
class Issued:
    """A step that was given to the device and not read yet: its sequences and what was proposed for each."""

    result: StepResult
    sequences: list[Sequence]
    drafts: list[list[int]]
    sampling: SamplingRows | None


@dataclass
class StepCounts:
    """What has been run so far."""

    steps: int = 0
    rows: int = 0
    """Decoded rows, those of drafts included."""
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass
class TokenScheduler:
    """Runs sequences over slots, or one over a cache of its own (``slots`` None: it brings its lane).

    Not to be used from several threads; only ``Sequence.cancelled`` may be set from elsewhere.
    """

    engine: Engine
    slots: SlotStore | None = None
    prefixes: PrefixStore | None = None
    parallel: int = 1
    switch: Callable[[str | None], None] = lambda adapter: None
    """Puts an adapter in force; all sequences that run need the same one."""
    waiting: deque[Sequence] = field(default_factory=deque)
    active: list[Sequence] = field(default_factory=list)
    """Sequences with a slot, in the order of their arrival."""
    issued: deque[Issued] = field(default_factory=deque)
    counts: StepCounts = field(default_factory=StepCounts)

    def __post_init__(self) -> None:
        text = self.engine.model.config.text_config
        self._every_id_runs = text.usable_ids == text.vocab_size
        self._admission = Admission(self.engine, self.slots, self.prefixes, self.parallel, self.switch)
        self._table = SamplingTable(self.engine.model, 1 if self.slots is None else self.slots.count)
        self._proposals = Proposals(self.engine, self._table)
        self._prompts = Prompts(self.engine, self.prefixes)

    def submit(self, sequence: Sequence) -> None:
        """Add a sequence to those that wait."""
        self.waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.waiting or self.active)

    # ------------------------------------------------------------------------------------------- a step

    def step(self) -> list[Event]:
        """Run what there is to run once; tokens and ends of sequences, in the order of arrival."""
        events: list[Event] = list(self._drop_cancelled())
        for sequence in self._admission.admit(self.waiting, self.active):
            self._table.start(sequence)
        if self._mixes:
            events += self._mixed()
            self._forget_ended()
            return events
        if not self.issued:
            events += self._issue()
        others, prompts = bool(self.issued), self._next_prompts(bool(self.issued))
        while self.issued:  # read first: the next call may overwrite what this one left
            events += self._read(self.issued.popleft())
            if not prompts:
                break
        for sequence in prompts:
            issued = self._prefill(sequence, others)
            if issued is not None:
                events += self._read(issued)
        events += self._issue()
        self._forget_ended()
        return events

    def _drop_cancelled(self) -> Iterator[Event]:
        now = time.monotonic()
        for sequence in [*self.active, *self.waiting]:
            late = sequence.deadline is not None and now >= sequence.deadline
            if sequence.finish_reason is None and (sequence.cancelled or late):
                if late and not sequence.cancelled:
                    sequence.error = InputError("the request's deadline has passed")
                self._end(sequence, "cancelled")
                yield sequence, None
        self.waiting = deque(sequence for sequence in self.waiting if sequence.finish_reason is None)
        self._forget_ended()

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence between steps, such as at a stop string."""
        if sequence.finish_reason is None:
            self._end(sequence, reason)
        self._forget_ended()

    def _end(self, sequence: Sequence, reason: str) -> None:
        sequence.finish_reason = reason
        sequence.last = time.perf_counter()
        if sequence.lane is not None:
            if sequence.first:
                sequence.note()
            if self.slots is not None:
                self.slots.release(sequence.lane.slot)

    def _forget_ended(self) -> None:
        self.active = [sequence for sequence in self.active if sequence.finish_reason is None]

    # ------------------------------------------------------------------------------------------- prompts

    def _next_prompts(self, others: bool) -> list[Sequence]:
        """Those whose prompts run in this step: one at a time where no other sequence waits for it."""
        found = [sequence for sequence in self.active if not sequence.first and sequence.finish_reason is None]
        return found[: PROMPTS if others else 1]

    def _prefill(self, sequence: Sequence, others: bool) -> Issued | None:
        """Run the next chunk of a prompt; the choice of the first token where it is the last one."""
        lane = sequence.lane
        assert lane is not None
        rows = self._prompts.rows(sequence, self.engine.model.operations.shared_chunk if others else None)
        last, choices = len(rows.wanted) > 0, sequence.choices
        sampling = self._choosing([sequence]) if last else None
        try:
            result = self.engine.run(lane.slots, rows, sampling, logits=choices.wants_logits)
        except Gemma4Error as error:
            sequence.error = error
            self._end(sequence, "cancelled")
            return Issued(Hidden(None), [sequence], [[]], None)
        self.counts.prompt_tokens += self._prompts.note(sequence, rows.count)
        if not last:
            return None
        return Issued(result, [sequence], [[]], sampling)

    # ------------------------------------------------------------------------------------------- both in one call

    @property
    def _mixes(self) -> bool:
        """Whether prompts and decoding go through one call: on devices that do not queue steps ahead, so that each
        weight is read once for all rows."""
        if self.slots is None or self.engine.model.operations.run_ahead:
            return False
        return self.engine.step(self.slots) is not None

    def _prompt_budget(self, others: bool) -> int:
        assert self.slots is not None
        return self.engine.model.operations.shared_chunk if others else self.engine.chunk_size(self.slots)

    def _mixed(self) -> list[Event]:
        """One row of each sequence that decodes (more where drafts are checked), and rows of as many prompts as fit.
        What the host has a say in, and media, run by themselves."""
        events: list[Event] = []
        ready = [sequence for sequence in self.active if sequence.decoding and sequence.run < sequence.limit - 1]
        prompts = [sequence for sequence in self.active if not sequence.first and sequence.finish_reason is None]
        for sequence in (sequence for sequence in ready if sequence.choices.processors):
            events += self._read(self._decode([sequence]))
        group = [sequence for sequence in ready if not sequence.choices.processors]
        drafts = self._proposals.of(group)
        parts = [sequence.next_rows(draft) for sequence, draft in zip(group, drafts, strict=True)]
        began = list(self._prompts.fitting(prompts, self._prompt_budget(bool(ready))))
        for sequence in (sequence for sequence, rows in began if rows is None):
            issued = self._prefill(sequence, bool(ready))
            events += self._read(issued) if issued is not None else []
        filling = [(sequence, rows) for sequence, rows in began if rows is not None]
        ends = [sequence for sequence, rows in filling if len(rows.wanted)]
        rows = joined([*parts, *(rows for _, rows in filling)]) if parts or filling else None
        if rows is not None:
            issued = self._run(rows, group, drafts, ends)
            for sequence, part in filling:
                self.counts.prompt_tokens += self._prompts.note(sequence, part.count)
            events += self._read(issued)
        return events

    # ------------------------------------------------------------------------------------------- decoding

    def _issue(self) -> list[Event]:
        """Give the device the next rows of all sequences that are decoding; further ones where it may run ahead. Rows
        with logits processors run one after another and are read at once."""
        events: list[Event] = []
        while True:
            ready = [sequence for sequence in self.active if sequence.decoding and sequence.run < sequence.limit - 1]
            if not ready or not self._may_issue(ready):
                return events
            if self.issued:
                self._issue_ahead(ready)
                continue
            for sequence in (sequence for sequence in ready if sequence.choices.processors):
                events += self._read(self._decode([sequence]))
            together = [sequence for sequence in ready if not sequence.choices.processors]
            if not together:
                return events
            self.issued.append(self._decode(together))

    def _may_issue(self, ready: list[Sequence]) -> bool:
        if not self.issued:
            return all(sequence.run < len(sequence.tokens) for sequence in ready)
        last = self.issued[-1].sequences
        lane = ready[0].lane
        assert lane is not None
        step = self.engine.step(lane.slots)
        free = all(not s.choices.on_host and s.drafting is None for s in ready)
        return (
            step is not None and self._every_id_runs and free and last == ready and len(self.issued) <= step.ahead
            and not isinstance(self.issued[-1].result, Several)  # that one was read already
        )

    def _issue_ahead(self, ready: list[Sequence]) -> None:
        before = self.issued[-1]
        parts = [sequence.next_rows() for sequence in ready]
        rows = joined(parts)
        rows = Rows(before.result.ids, rows.slot, rows.position, rows.wanted)
        self.issued.append(self._run(rows, ready, [[] for _ in ready], sampling=before.sampling))

    def _decode(self, group: list[Sequence]) -> Issued:
        drafts = self._proposals.of(group)
        rows = joined([sequence.next_rows(draft) for sequence, draft in zip(group, drafts, strict=True)])
        return self._run(rows, group, drafts)

    def _choosing(self, group: list[Sequence], drafts: list[list[int]] | None = None) -> SamplingRows:
        """How a group's rows choose. Where logits processors have the last word the device's choice means nothing."""
        if any(sequence.choices.processors for sequence in group):
            return greedy_rows(len(group))
        return self._table.rows(group, drafts)

    def _run(
        self, rows: Rows, group: list[Sequence], drafts: list[list[int]], ends: list[Sequence] | None = None,
        sampling: SamplingRows | None = None,
    ) -> Issued:
        """Run a group's rows, with rows of prompts behind them: those of ``ends`` choose their first token."""
        choosing, lane = [*group, *(ends or [])], (group or self.active)[0].lane
        assert lane is not None
        drafts = [*drafts, *([] for _ in ends or [])]
        if sampling is None and choosing:
            sampling = self._choosing(choosing, drafts)
        logits = any(sequence.choices.wants_logits for sequence in choosing)
        hidden = self._proposals.wants_hidden(choosing)
        result = self.engine.run(lane.slots, rows, sampling, hidden=hidden, logits=logits)
        for sequence in group:
            sequence.run += 1
            sequence.note()
        if group:
            self.counts.steps += 1
            self.counts.rows += sum(1 + len(draft) for draft in drafts[: len(group)])
        return Issued(result, choosing, drafts, sampling)

    # ------------------------------------------------------------------------------------------- results

    def _read(self, issued: Issued) -> list[Event]:
        """Wait for a step and hand out what it chose."""
        choices = issued.result.read()
        logits = self._host_logits(issued)
        hidden = issued.result.hidden if self._proposals.wants_hidden(issued.sequences) else None
        states = None if hidden is None else hidden.float().numpy()
        events: list[Event] = []
        at = 0
        for sequence, draft in zip(issued.sequences, issued.drafts, strict=True):
            mine = choices[at : at + 1 + len(draft)]
            rows = None if logits is None else logits[at : at + len(mine)]
            first, at = at, at + 1 + len(draft)
            if sequence.finish_reason is None:
                before = len(sequence.tokens)
                events += self._take(sequence, draft, mine, rows)
                if states is not None and sequence.drafting is not None:
                    sequence.drafting.hidden = states[first + max(len(sequence.tokens) - before - 1, 0)]
            elif sequence.error is not None and not choices:  # it failed before anything ran
                events.append((sequence, None))
        if issued.sampling is not None and issued.sampling.drafted is not None:
            for sequence in (sequence for sequence in issued.sequences if sequence.finish_reason is None):
                self._table.count(sequence)  # the slot of one that has ended may be another's by now
        return events

    @staticmethod
    def _host_logits(issued: Issued) -> np.ndarray | None:
        found = issued.result.logits if any(s.choices.wants_logits for s in issued.sequences) else None
        return None if found is None else found.float().numpy()

    def _take(
        self, sequence: Sequence, draft: list[int], choices: list[tuple[int, float]], logits: np.ndarray | None
    ) -> Iterator[Event]:
        """A sequence's choices: those that follow from ids which were right."""
        if not sequence.first:
            sequence.first = time.perf_counter()
        accepted = 0
        for number, (token, logprob) in enumerate(choices):
            row = None if logits is None else logits[number]
            try:
                if sequence.error is not None:
                    raise sequence.error
                if sequence.choices.processors and row is not None:
                    token, logprob = host_choice(self.engine, sequence, self._table, row)
                if sequence.choices.constraint is not None:
                    sequence.choices.constraint.check()
                top = top_tokens(row, sequence.choices.top_logprobs) if row is not None else ()
                ended = self._ends(sequence, token)
                if not ended:
                    self._check(sequence, token)
            except Exception as error:  # of a processor, constraint, drafter or one id: it ends this answer alone
                sequence.error = error
                self._end(sequence, "cancelled")
                yield sequence, None
                return
            if ended:
                yield sequence, None
                break
            sequence.tokens.append(token)
            self.counts.generated_tokens += 1
            sequence.note()
            if len(sequence.tokens) >= sequence.limit:
                self._end(sequence, "length")
            yield sequence, Token(token, logprob, top)
            if sequence.finish_reason is not None:
                yield sequence, None
                break
            if number < len(draft):
                if token != draft[number]:
                    break
                accepted += 1
                sequence.run += 1
        if draft and sequence.drafting is not None and not sequence.forced:
            sequence.drafting.checked(len(draft), accepted)

    def _ends(self, sequence: Sequence, token: int) -> bool:
        if token not in sequence.stops:
            return False
        self._end(sequence, "stop")
        return True

    def _check(self, sequence: Sequence, token: int) -> None:
        if not self._every_id_runs and len(sequence.tokens) + 1 < sequence.limit:  # the last one is never run
            check_rows(np.array([token]), self.engine.model.config.text_config)
        if sequence.choices.constraint is not None:
            sequence.choices.constraint.advance(token)
            sequence.choices.constraint.check()

