"""Kernels whose machine code is made later, when a program is compiled: all of them side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LATE: ContextVar[bool] = ContextVar("late", default=False)


class LateBinary(bytes):
    """Stands for a kernel's machine code until it is compiled: bytes, as tinygrad expects, that tell its source."""

    compile: Callable[[str], bytes]
    source: str

    def __new__(cls, compile: Callable[[str], bytes], source: str) -> LateBinary:
        made = super().__new__(cls, b"late " + hashlib.sha256(source.encode()).digest())
        made.compile, made.source = compile, source
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return LateBinary, (self.compile, self.source)

    def __call__(self) -> bytes:
        """The machine code. Raises what the compiler raises."""
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
