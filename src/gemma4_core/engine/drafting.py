"""Drafting: how many tokens are proposed for a sequence, and whether that pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Drafter, Slots

LONGEST = 8
"""Most tokens proposed at once, where nothing else is asked for."""
TRIES, REST = 4, 64
"""After so many proposals in a row of which no token was kept, nothing is proposed for so many tokens."""


@dataclass
class DraftStats:
    """What drafting did for one answer."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0
    """Steps that checked a proposal."""


@dataclass
class Drafting:
    """One sequence's drafts. The number proposed grows while all are kept, and falls to what was kept otherwise."""

    name: str
    """The drafter's."""
    build: Callable[[Slots], Drafter]
    """Makes the drafter for some slots; sequences of one scheduler share it."""
    most: int = LONGEST
    count: int = 4
    """Tokens that are proposed next."""
    stats: DraftStats = field(default_factory=DraftStats)
    hidden: np.ndarray | None = None
    """``[H]``: the final hidden state that the newest token was chosen from, for drafters that need it."""
    failures: int = 0
    rest: int = 0
    """Tokens before anything is proposed again."""

    def wanted(self, room: int) -> int:
        """How many tokens to propose now, where there is room for so many."""
        if self.rest > 0:
            self.rest -= 1
            return 0
        return max(min(self.count, self.most, room), 0)

    def checked(self, proposed: int, accepted: int) -> None:
        """Take in how many of the ids proposed were what the model chose."""
        self.stats.proposed += proposed
        self.stats.accepted += accepted
        self.stats.steps += 1
        self.count = min(self.most, self.count * 2) if accepted == proposed else max(1, accepted + 1)
        self.failures = 0 if accepted else self.failures + 1
        if self.failures >= TRIES:
            self.failures, self.rest = 0, REST
