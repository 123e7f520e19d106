"""Kernels whose machine code is made later, when a program is compiled: all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_LATE: ContextVar[bool] = ContextVar("late", default=False)


@dataclass(frozen=True)
class LateBinary:
    """Stands for the machine code of a kernel until it is compiled."""

    compile: Callable[[str], bytes]
    source: str

    def __call__(self) -> bytes:
        return self.compile(self.source)


@contextmanager
def late_binaries() -> Iterator[None]:
    """Let devices give ``LateBinary`` in place of machine code; who traces then compiles."""
    token = _LATE.set(True)
    try:
        yield
    finally:
        _LATE.reset(token)


def may_be_late() -> bool:
    """Whether machine code may be made later."""
    return _LATE.get()
