"""The server's log: one JSON object a line on stderr, and nothing of what people write."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from typing import Any


class Log:
    """Writes lines; ``on`` is whether it does."""

    def __init__(self) -> None:
        self.on = False
        self._lock = threading.Lock()

    def write(self, event: str, **values: Any) -> None:
        """A line with the time, what happened, and values, which must not hold anybody's text."""
        if self.on:
            line = json.dumps({"time": round(time.time(), 3), "event": event, **values})
            with self._lock:
                print(line, file=sys.stderr, flush=True)

    def failure(self, where: str, error: BaseException) -> None:
        """A fault of ours: its type and the place in the code. What it says may quote a prompt, and is left out."""
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
        self.write("failure", where=where, error=type(error).__name__, at=places)


log = Log()
