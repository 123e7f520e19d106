"""How far a batch has come: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import time
from typing import Any

from gemma4_core.checkpoint.progress import terminal_bar
from gemma4_core.cli.output import tell
from gemma4_core.console import console

BAR_SECONDS = 0.5
"""Time between two figures beside the bar."""


class BatchProgress:
    """Rows, failures, tokens per second and the time left."""

    def __init__(self, total: int, done: int) -> None:
        """``done`` rows of ``total`` are finished already."""
        self.total, self.done, self.before = total, done, done
        self.failed = self.tokens = 0
        self.began = time.monotonic()
        self.bar: Any = None
        self._shown = 0.0

    def __enter__(self) -> BatchProgress:
        self.began = time.monotonic()
        self.bar = terminal_bar(self.total, "answering", " rows")
        if self.bar is not None:
            self.bar.initial = self.bar.n = self.done
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def seconds(self) -> float:
        """Since the first row was begun."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)

    def row(self, failed: bool) -> None:
        """Count a row."""
        self.done += 1
        self.failed += failed
        if self.bar is not None:
            self.bar.update(1)

    def tell(self, tokens: int) -> None:
        """Show how far it has come, given the tokens of this run."""
        self.tokens = tokens
        if self.bar is not None:
            if time.monotonic() - self._shown < BAR_SECONDS:
                return
            self._shown = time.monotonic()
            self.bar.set_postfix_str(f"{self.failed} failed, {self.rate:.0f} tok/s")
        elif console.logs():
            tell(f"{self.done} of {self.total} rows, {self.failed} failed, {self.rate:.0f} tok/s, {self.left()} left")

    def left(self) -> str:
        """The time that the other rows take at the pace so far, as ``1:02:03``; a question mark before the first."""
        finished = self.done - self.before
        if not finished:
            return "?"
        seconds = round(self.seconds / finished * (self.total - self.done))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
