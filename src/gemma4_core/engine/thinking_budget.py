"""``ThinkingBudget``: thoughts of at most so many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Constraint


class ThinkingBudget:
    """A constraint that closes the thought channel once so many tokens stand in it; it allows everything else, or what
    another constraint allows.

    Args:
        budget: tokens between the channel's two marks, the channel's name counted.
        opens, closes: ids of the two marks.
        vocabulary: ids in all.
        thinking: whether the prompt has left the channel open.
        inner: what the answer is held to besides.
    """

    def __init__(
        self, budget: int, opens: int, closes: int, vocabulary: int, thinking: bool = False,
        inner: Constraint | None = None,
    ) -> None:
        self.budget, self.opens, self.closes, self.inner = budget, opens, closes, inner
        self._everything = np.full(-(-vocabulary // 32), 0xFFFFFFFF, np.uint32)
        self._end = np.zeros_like(self._everything)
        self._end[closes // 32] = np.uint32(1) << np.uint32(closes % 32)
        self._spent: list[int | None] = [0 if thinking else None]
        """After each id how many tokens stand in the open channel; None where it is closed."""

    @property
    def exhausted(self) -> bool:
        """Whether the channel has to be closed now."""
        spent = self._spent[-1]
        return spent is not None and spent >= self.budget

    def mask(self) -> np.ndarray:
        """uint32 ``[ceil(V / 32)]``, a bit for each id that may come next."""
        allowed = self._everything if self.inner is None else self.inner.mask()
        if not self.exhausted:
            return allowed
        closing = allowed & self._end
        return closing if closing.any() else allowed  # the other constraint has the last word

    def advance(self, token: int) -> None:
        """Take in an id."""
        spent = self._spent[-1]
        if token == self.opens:
            self._spent.append(0)
        elif token == self.closes:
            self._spent.append(None)
        else:
            self._spent.append(None if spent is None else spent + 1)
        if self.inner is not None:
            self.inner.advance(token)

    def rollback(self, tokens: int) -> None:
        """Take back the last so many ids."""
        del self._spent[len(self._spent) - tokens :]
        if self.inner is not None:
            self.inner.rollback(tokens)

    def forced(self) -> Sequence[int]:
        """The ids that must come next: the channel's end, or what the other constraint forces."""
        if self.exhausted:
            return [self.closes]
        return [] if self.inner is None else self.inner.forced()
