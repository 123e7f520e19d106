"""Where a plugin comes from, and text of plugins made safe to print: one line, bounded, no control codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

SHOWN = 300
"""Characters of the longest text of a plugin, such as an error, that is printed."""


@dataclass(frozen=True)
class Origin:
    """An entry point and the distribution that declares it; those are None for a plugin registered by hand."""

    entry_point: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        if self.distribution is None:
            return f"plugin '{self.entry_point}', registered by hand"
        return f"plugin '{self.entry_point}' of {self.distribution} {self.version or '(unknown version)'}"


def one_line(value: object, limit: int = SHOWN) -> str:
    """``str(value)`` on one line of at most ``limit`` characters, without control codes; never raises."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(error: BaseException) -> str:
    """An exception as one line: its type and message."""
    message = one_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"`` for the known word of the most similar spelling, else an empty string."""
    spelt = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold()[:100], list(spelt), n=1)
    return f", did you mean '{spelt[close[0]]}'?" if close else ""
