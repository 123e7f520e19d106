"""Drafter ``lookup``: proposes what followed the newest tokens where they stood before, in the prompt or the answer.

It needs no second model and pays where answers repeat parts of their prompt: code that is changed, documents that are
quoted, tables, names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.contracts import DrafterBackend
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.contracts.rows import Rows
    from gemma4_core.contracts.steps import DecoderView, Slots

SHORTEST, LONGEST = 2, 4
"""Tokens that must stand together for what followed them to be proposed: the longest match decides."""


class Seen:
    """Where each run of tokens of one sequence was last followed by something."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.places, self.count = tokens, {}, 0  # type: ignore[var-annotated]

    def after(self, newest: int, count: int) -> list[int]:
        """What followed the sequence's last tokens and the newest one, which is not among them yet."""
        tokens = self.tokens
        for end in range(self.count, len(tokens)):
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self.places[tuple(tokens[end - n : end])] = end
        self.count = max(self.count, len(tokens))
        for n in range(min(LONGEST, len(tokens) + 1), SHORTEST - 1, -1):
            place = self.places.get((*tokens[len(tokens) - n + 1 :], newest))
            if place is not None:
                return [*tokens[place : place + count], newest][:count] if place < len(tokens) else []
        return []


class LookupDrafter:
    """See ``gemma4_core.contracts.steps.Drafter``."""

    needs_hidden = False

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.seen: dict[int, Seen] = {}

    def propose(self, rows: Rows, hidden: Tensor | None, k: int) -> np.ndarray:
        """int32 ``[N, k]``."""
        proposed = np.full((rows.count, k), -1, np.int32)
        for row, (slot, newest) in enumerate(zip(rows.slot.tolist(), np.asarray(rows.ids).tolist(), strict=True)):
            found = self._of(slot).after(newest, k)
            proposed[row, : len(found)] = found
        return proposed

    def _of(self, slot: int) -> Seen:
        tokens = self.slots.tokens(slot)
        known = self.seen.get(slot)
        if known is None or known.tokens is not tokens:  # another sequence has the slot
            known = self.seen[slot] = Seen(tokens)
        return known


def build(target: DecoderView, slots: Slots, values: Mapping[str, Any]) -> LookupDrafter:
    """The drafter for some slots; it looks at nothing but their tokens."""
    return LookupDrafter(slots)


@hookimpl
def gemma4_drafters() -> list[DrafterBackend]:
    """Prompt lookup."""
    return [DrafterBackend("lookup", "what followed the same tokens before, in prompt or answer", build)]
