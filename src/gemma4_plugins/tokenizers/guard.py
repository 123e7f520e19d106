"""Calls into tokenizer libraries, whose faults become TokenizerError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from gemma4_core.errors import TokenizerError
from gemma4_core.formatting import shown
from gemma4_core.silence import silent_stderr


@contextmanager
def guarded(what: str, silent: bool = True) -> Iterator[None]:
    """Turn the library's exceptions into TokenizerError, its Rust panics included.

    A panic is not an ``Exception``, and writes a backtrace to file descriptor 2 before it can be caught.
    """
    try:
        with silent_stderr() if silent else nullcontext():
            yield
    except TokenizerError:
        raise
    except BaseException as fault:
        if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {shown(str(fault) or type(fault).__name__, 200)}") from fault
