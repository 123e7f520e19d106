"""What may be written to stderr in this process: progress for a person, log lines for a long run, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOG_SECONDS = 5.0
"""Time between two log lines of a long run."""


class Console:
    """The state of this process; ``console`` is the one instance."""

    def __init__(self) -> None:
        self.quiet = False
        """True leaves out everything but errors (``--quiet``)."""
        self.log = False
        """Whether progress becomes log lines where stderr is not a terminal."""
        self._written = 0.0

    def on_terminal(self) -> bool:
        """Whether a person reads stderr and wants more than errors."""
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()

    def logs(self) -> bool:
        """Whether progress is to be written as log lines."""
        return self.log and not self.quiet and sys.stderr is not None and not sys.stderr.isatty()

    def log_due(self) -> bool:
        """Whether it is time for a log line; true once in ``LOG_SECONDS``."""
        now = time.monotonic()
        if not self.logs() or now - self._written < LOG_SECONDS:
            return False
        self._written = now
        return True

    @contextmanager
    def configured(self, quiet: bool = False, log: bool = False) -> Iterator[None]:
        """Use these settings within a ``with`` block."""
        before = self.quiet, self.log
        self.quiet, self.log, self._written = quiet, log, time.monotonic()
        try:
            yield
        finally:
            self.quiet, self.log = before


console = Console()
