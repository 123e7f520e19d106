"""What goes where: the answer to stdout, everything else to stderr, and that only for a person or when asked for."""

from __future__ import annotations

import os
import sys
from typing import Any

from gemma4_core.console import console

DIM, PLAIN = "\033[2m", "\033[0m"


def on_terminal() -> bool:
    """Whether a person reads stderr and did not ask for ``--quiet``."""
    return console.on_terminal()


def colour() -> bool:
    """Whether stderr may be coloured."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """A line on stderr, dim where there are colours."""
    print(f"{DIM}{text}{PLAIN}" if colour() else text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """A line about a long run: to a person at once, to a log every few seconds, else nowhere."""
    if on_terminal() or console.log_due():
        note(text)


def write(text: str) -> None:
    """Text to stdout, at once. Raises OSError that names it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in the characters that stdout can write."""
    import json  # help does without it

    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent)
