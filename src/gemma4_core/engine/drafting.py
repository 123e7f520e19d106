"""Drafting: proposed tokens that one step checks, how many, and whether they pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

LONGEST = 8
"""Most tokens proposed at once, where nothing else is asked for."""
TRIES, REST = 4, 64
"""After so many proposals of which no token was kept, nothing is proposed for so many tokens."""


class Proposer(Protocol):
    """Proposes what may follow the ids of one sequence."""

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """At most ``count`` ids, none where it has no idea."""


@dataclass
class DraftStats:
    """What drafting did for one answer."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0
    """Steps that checked a proposal."""


@dataclass
class Drafting:
    """One sequence's drafts. The number proposed grows while all are kept and shrinks to what was kept otherwise."""

    proposer: Proposer
    most: int = LONGEST
    count: int = 4
    stats: DraftStats = field(default_factory=DraftStats)
    failures: int = 0
    rest: int = 0
    """Tokens before anything is proposed again."""

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Ids that may follow, at most ``room``."""
        if self.rest > 0:
            self.rest -= 1
            return []
        count = min(self.count, self.most, room)
        return list(self.proposer.propose(ids, count))[:count] if count > 0 else []

    def checked(self, proposed: int, accepted: int) -> None:
        """Take in how many of the ids proposed were what the model chose."""
        self.stats.proposed += proposed
        self.stats.accepted += accepted
        self.stats.steps += 1
        self.count = min(self.most, self.count * 2) if accepted == proposed else max(1, accepted + 1)
        self.failures = 0 if accepted else self.failures + 1
        if self.failures >= TRIES:
            self.failures, self.rest = 0, REST


class Lookup:
    """Proposes what followed the last occurrence of the newest ids: for answers that repeat parts of their prompt.

    The longest of the last 1 to ``longest`` ids that occurred before decides.
    """

    def __init__(self, longest: int = 4) -> None:
        self.longest = longest
        self.places: dict[tuple[int, ...], int] = {}
        """Where each n-gram was last followed by something: the position behind it."""
        self.seen = 0

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """See ``Proposer``. Ids of one sequence, each time the same with some more."""
        for end in range(self.seen + 1, len(ids)):
            for n in range(1, min(self.longest, end) + 1):
                self.places[tuple(ids[end - n : end])] = end
        self.seen = max(self.seen, len(ids) - 1)
        for n in range(min(self.longest, len(ids)), 1, -1):
            place = self.places.get(tuple(ids[-n:]))
            if place is not None:
                return list(ids[place : place + count])
        return []
