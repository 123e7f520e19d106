"""Progress on stderr, shown only to a person: nothing is written where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """What ``progress`` yields."""

    def update(self, amount: int) -> object:
        """So much more is done."""


class Silent:
    """A bar that shows nothing."""

    def update(self, amount: int) -> None:
        """Nothing to show."""


@contextmanager
def progress(total: int, description: str, unit: str = "it") -> Iterator[Progress]:
    """A bar for ``total`` units of work (``unit="B"`` for bytes), gone when the work is done."""
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
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    scale = {"unit_scale": True, "unit_divisor": 1000}
    return tqdm(total=total, desc=description, unit=unit, file=sys.stderr, leave=False, **scale)
