"""Ctrl-C that stops an answer or a run instead of the program."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Within its ``with`` block the first Ctrl-C sets ``asked``, and a second one raises KeyboardInterrupt (another
    signal SystemExit).

    So a running step ends before the program stops, unless the user presses Ctrl-C twice. Outside of the main thread,
    where Python delivers no signals, it does nothing.
    """

    def __init__(self, hint: str | None = None, numbers: tuple[int, ...] = (signal.SIGINT,)) -> None:
        """``hint`` is printed on stderr at the first signal; ``numbers`` are the signals that it handles."""
        self.asked = False
        self.number: int = signal.SIGINT
        """The signal that came."""
        self.hint, self.numbers = hint, numbers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            # a signal that is ignored, as under nohup, stays ignored
            wanted = [number for number in self.numbers if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._on_signal) for number in wanted}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @staticmethod
    def ending(number: int) -> BaseException:
        """The exception that ends the program after a signal: exit code 130 for Ctrl-C, 143 for SIGTERM."""
        return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise self.ending(number)
        self.asked, self.number = True, number
        if self.hint is not None:
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.hint}\n".encode())  # print is not safe inside a signal handler
