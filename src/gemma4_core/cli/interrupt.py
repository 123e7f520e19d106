"""Ctrl-C that stops an answer and not the program."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Within its ``with`` block the first Ctrl-C sets ``asked`` and a second one raises KeyboardInterrupt.

    A running step is thus not cut in two, unless the user insists. Outside the main thread, where Python gives no
    signals, it does nothing.
    """

    def __init__(self, hint: str | None = None) -> None:
        self.asked = False
        self.hint = hint
        """What to say on stderr at the first Ctrl-C."""
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(self, *exc: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.hint is not None:
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.hint}\n".encode())  # print is not safe inside a signal handler
