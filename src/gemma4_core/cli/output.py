"""Output of commands: the answer to stdout, everything else to stderr and only at a terminal or on request."""

from __future__ import annotations

import os
import sys
from typing import Any

from gemma4_core.console import console

DIM, PLAIN = "\033[2m", "\033[0m"


def on_terminal() -> bool:
    """Whether stderr is a terminal and ``--quiet`` is off."""
    return console.on_terminal()


def colour() -> bool:
    """Whether stderr may be coloured."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Print a line on stderr, dim where colours are allowed."""
    print(f"{DIM}{text}{PLAIN}" if colour() else text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print a line of progress: at a terminal always, in the log of a long run every few seconds, else never."""
    if on_terminal() or console.log_due():
        note(text)


def write(text: str) -> None:
    """Write text to stdout and flush it. Raises OSError that names standard output."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON text, escaped where stdout cannot encode UTF-8."""
    import json  # help does without it

    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent)
