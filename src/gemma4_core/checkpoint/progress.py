"""Progress on stderr: a bar for a person, a line every few seconds in the log of a long run, else nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from gemma4_core.console import console


class Progress(Protocol):
    """What ``progress`` yields."""

    def update(self, amount: int) -> object:
        """Add to the amount that is done."""


class Silent:
    """A bar that shows nothing."""

    def update(self, amount: int) -> None:
        """Show nothing."""


class LogLines:
    """Writes ``loading: 40 % of 10.2 GB`` to stderr, one line every few seconds."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = 0

    def update(self, amount: int) -> None:
        """Count, and write a line if one is due."""
        self.done += amount
        if not console.log_due():
            return
        whole = f"{self.total / 1e9:.2f} GB" if self.unit == "B" else f"{self.total} {self.unit}"
        share = 100 * self.done / max(self.total, 1)
        print(f"{self.description}: {share:.0f} % of {whole}", file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, description: str, unit: str = "it") -> Iterator[Progress]:
    """A bar for ``total`` units of work (``unit="B"`` for bytes), gone when the work is done."""
    if console.logs():
        yield LogLines(total, description, unit)
        return
    bar = terminal_bar(total, description, unit)
    if bar is None:
        yield Silent()
        return
    try:
        yield bar
    finally:
        bar.close()


def terminal_bar(total: int, description: str, unit: str) -> Any:
    """tqdm's bar on a terminal, None elsewhere or where tqdm (a dependency of huggingface_hub) is absent."""
    if not console.on_terminal():
        return None
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    scale = {"unit_scale": True, "unit_divisor": 1000}
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, leave=False, **scale)
