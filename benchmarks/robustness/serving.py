"""A server of the demo model in a process of its own, for the programs that attack and load it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any


class Served:
    """``gemma4 serve -m demo`` on a free port; what it logs is counted, and failures are kept."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "gemma4_core", "serve", "-m", "demo", "--device", "cpu", "--dtype", "float32",
                   "--port", "0", *options]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if not line.startswith("{"):
            raise SystemExit(line + self.process.stderr.read())
        self.url: str = json.loads(line)["url"]
        self.events: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                told = json.loads(line)
            except ValueError:
                told = {"event": "not json", "line": line[:200]}
            self.events[told["event"]] += 1
            if told["event"] not in ("request", "ended"):
                self.failures.append(told)

    def memory(self) -> int:
        """Bytes that the process holds, 0 where that cannot be told."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS")), 0)

    def end(self) -> int:
        """End it by SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(60)
