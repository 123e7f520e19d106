"""``GuardedConstraint``: a constraint of somebody's whose faults end its own answer and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import Gemma4Error, InputError

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import Constraint


class GuardedConstraint:
    """Asks a constraint while steps are put together. What it raises, or a mask that is none, is kept as ``error``;
    the scheduler ends the answer with it when the step is read."""

    def __init__(self, inner: Constraint, vocabulary: int) -> None:
        self.inner, self.words = inner, -(-vocabulary // 32)
        self.error: Gemma4Error | None = None

    def mask(self) -> np.ndarray:
        """uint32 ``[ceil(V / 32)]``; everything is allowed after an error."""
        found = self._asked("mask", self.inner.mask)
        whole = isinstance(found, np.ndarray) and found.dtype == np.uint32 and found.shape == (self.words,)
        if self.error is None and not whole:
            self.error = InputError(f"constraint: mask() must return {self.words} numbers of type uint32")
        elif self.error is None and not found.any():
            self.error = InputError("constraint: mask() allows no id")
        return found if self.error is None else np.full(self.words, 0xFFFFFFFF, np.uint32)

    def advance(self, token: int) -> None:
        """Take in an id."""
        self._asked("advance", self.inner.advance, token)

    def rollback(self, tokens: int) -> None:
        """Take back the last so many ids."""
        self._asked("rollback", self.inner.rollback, tokens)

    def forced(self) -> Sequence[int]:
        """The ids that must follow; none after an error."""
        found = self._asked("forced", self.inner.forced)
        return [int(token) for token in found] if self.error is None else []

    def check(self) -> None:
        """Raise the error, where there was one."""
        if self.error is not None:
            raise self.error

    def _asked(self, name: str, function: Callable[..., Any], *given: int) -> Any:
        if self.error is not None:
            return None
        try:
            return function(*given)
        except Exception as error:
            self.error = InputError(f"constraint: {name}() raised {type(error).__name__}: {error}")
            return None
