"""Admission: which waiting sequence gets a slot next, and how much of its prompt that slot holds already."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gemma4_core.engine.engine import Engine
from gemma4_core.engine.prefix import WORTH, PrefixStore
from gemma4_core.engine.rows import common_ids
from gemma4_core.engine.sequence import Sequence, SlotLane
from gemma4_core.model.slots import SlotStore

PATIENCE = 0.5
"""Seconds that a sequence waits for others which came later and need the adapter that is in force."""


@dataclass
class Admission:
    """Gives slots in order of arrival, except that sequences of the adapter in force may come first for a while."""

    engine: Engine
    slots: SlotStore | None
    """None where a sequence brings its own lane."""
    prefixes: PrefixStore | None
    parallel: int
    switch: Callable[[str | None], None]
    adapter: str | None = None
    """The one in force."""

    def admit(self, waiting: deque[Sequence], active: list[Sequence]) -> list[Sequence]:
        """Move those that get a slot now from ``waiting`` to ``active``; they are returned."""
        admitted: list[Sequence] = []
        if self.slots is not None:
            self.slots.current(self.engine.model)
        while len(active) < self.parallel and (sequence := self._next(waiting, active)) is not None:
            if self.slots is not None and not self._give_slot(sequence, self.slots, active):
                break
            sequence.admitted = time.perf_counter()
            waiting.remove(sequence)
            active.append(sequence)
            admitted.append(sequence)
        return admitted

    def _next(self, waiting: deque[Sequence], active: list[Sequence]) -> Sequence | None:
        """The oldest that needs the adapter in force; once another one has waited long enough nobody comes before it,
        and when nothing runs any more its adapter is put in force."""
        if not waiting:
            return None
        oldest = waiting[0]
        if oldest.adapter != self.adapter and not active:
            self.switch(oldest.adapter)
            self.adapter = oldest.adapter
            if self.slots is not None:
                self.slots.current(self.engine.model)
        if oldest.adapter == self.adapter:
            return oldest
        if time.perf_counter() - oldest.began > PATIENCE:
            return None
        return next((sequence for sequence in waiting if sequence.adapter == self.adapter), None)

    def _give_slot(self, sequence: Sequence, slots: SlotStore, active: list[Sequence]) -> bool:
        """A slot with as much of the prompt as is found; False where it is worth waiting for another prompt that begins
        alike."""
        revision = self.engine.model.weights_revision
        source, shared = self.prefixes.best(sequence, revision) if self.prefixes is not None else (0, 0)
        if any(self._soon(other, sequence) >= shared + WORTH for other in active):
            return False
        if shared and shared < WORTH:
            shared = 0
        mine = not slots.held[source].claimed and shared > 0
        slot = source if mine else slots.claim(sequence.length)
        slots.held[slot].claimed = True
        if shared and not mine:
            slots.copy(source, slot, shared)
        elif not slots.truncate(slot, shared):
            shared = 0
        held = slots.held[slot]
        held.revision, held.key = revision, sequence.key
        if self.prefixes is not None:
            stats = self.prefixes.stats
            self.prefixes.used(source)
            stats.hits, stats.misses = stats.hits + bool(shared), stats.misses + (not shared)
            stats.reused_tokens += shared
        sequence.lane, sequence.reused = SlotLane(slots, slot), shared
        return True

    def _soon(self, running: Sequence, sequence: Sequence) -> int:
        """How much of a prompt can be copied once another one's has run as far."""
        if self.prefixes is None or running.first or running.finish_reason or running.key != sequence.key:
            return 0
        whole = running.prompt.signature
        shared = common_ids(whole, sequence.prompt.signature)
        if shared >= len(whole) - 1:
            return shared
        ends = [end for end in running.boundaries if end <= shared] if self.prefixes.kept else []
        return max(ends, default=0)
