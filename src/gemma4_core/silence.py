"""Native libraries write to file descriptor 2 by themselves: into the one line that a failure prints."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_kept: int | None = None


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 to nowhere for the whole process; for a short call into a library. Threads may overlap:
    the last one to leave restores it."""
    global _inside
    with _lock:
        if not _inside:
            _redirect()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _restore()


def _redirect() -> None:
    global _kept
    try:
        _kept = os.dup(2)
    except OSError:  # it is closed: nothing can be written
        _kept = None
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _restore() -> None:
    global _kept
    if _kept is not None:
        os.dup2(_kept, 2)
        os.close(_kept)
        _kept = None
