"""The prefix store: beginnings of prompts that several conversations share, kept in slots of their own and copied.

A prompt goes on from the longest beginning that any slot holds: its own from the turn before, another conversation's,
or a snapshot taken where a message ended. Two beginnings are the same where ids, the content of media, the adapter, the
salt and the revision of the weights are equal.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from gemma4_core.engine.rows import common_ids
from gemma4_core.engine.sequence import Sequence
from gemma4_core.model.ids import bound
from gemma4_core.model.slots import Held, SlotStore

WORTH = 16
"""Positions from which on a shared beginning is copied: fewer are computed as fast."""


@dataclass
class PrefixStats:
    """What the store did."""

    hits: int = 0
    """Prompts of which a beginning was found."""
    misses: int = 0
    reused_tokens: int = 0
    snapshots: int = 0
    """Taken so far."""


def common(held: Held, sequence: Sequence) -> int:
    """How many leading positions of a sequence's prompt a slot holds. At least one is left to run, and a media block
    whose tokens see each other is not entered halfway."""
    shared = common_ids(held.tokens, sequence.prompt.signature[:-1])
    while bound(sequence.prompt.blocks, shared):
        shared -= 1
    return shared


class PrefixStore:
    """Finds beginnings among all slots, and keeps snapshots in slots ``first … first + count - 1``."""

    def __init__(self, slots: SlotStore, first: int, count: int) -> None:
        self.slots = slots
        self.kept: OrderedDict[int, None] = OrderedDict((slot, None) for slot in range(first, first + count))
        """Slots of snapshots, the least recently used first."""
        self.stats = PrefixStats()
        for slot in self.kept:
            slots.held[slot].claimed = True

    def usable(self, slot: int, sequence: Sequence, revision: int) -> int:
        """How many leading positions of a sequence's prompt may be taken from a slot."""
        held = self.slots.held[slot]
        if not held.length or held.revision != revision or held.key != sequence.key:
            return 0
        shared = common(held, sequence)
        return shared if self.slots.reaches(slot, shared) else 0

    def best(self, sequence: Sequence, revision: int) -> tuple[int, int]:
        """The slot with the longest beginning of a sequence's prompt, and its length; the length is 0 for none."""
        found = [(self.usable(slot, sequence, revision), -slot) for slot in range(self.slots.count)]
        shared, slot = max(found)
        return -slot, shared

    def used(self, slot: int) -> None:
        """Note that a snapshot was used."""
        if slot in self.kept:
            self.kept.move_to_end(slot)

    def keep(self, source: int, length: int) -> None:
        """Take a snapshot of a slot's first ``length`` positions, in place of the least recently used one."""
        held = self.slots.held
        if not self.kept or any(held[slot].same_beginning(held[source], length) for slot in self.kept):
            return
        slot = next(iter(self.kept))
        self.kept.move_to_end(slot)
        self.slots.copy(source, slot, length)
        self.stats.snapshots += 1
