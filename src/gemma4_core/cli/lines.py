"""Reading what a user types: history, line editing, several lines between triple quotes; or lines of a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

QUOTES = '"""'
PROMPT, CONTINUED = ">>> ", "... "
HISTORY_LINES = 1000


def history_path() -> Path:
    """Where the history is kept: ``$XDG_STATE_HOME/gemma4/chat_history``."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "gemma4" / "chat_history"


class Lines:
    """Messages typed by a user, one by one."""

    def __init__(self, keep_history: bool = True) -> None:
        self.interactive = sys.stdin.isatty()
        """Whether a person types."""
        self.keep_history = keep_history and self.interactive
        self._readline: ModuleType | None = None
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

    def __enter__(self) -> Lines:
        if self.interactive and sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                if self.keep_history:
                    with contextlib.suppress(OSError):
                        readline.read_history_file(history_path())
        return self

    def __exit__(self, *exc: object) -> None:
        if self._readline is not None and self.keep_history:
            with contextlib.suppress(OSError):
                self._save_history(self._readline)

    def next(self) -> str | None:
        """The next message, perhaps of several lines; None at the end of input.

        Raises KeyboardInterrupt where Ctrl-C is typed.
        """
        text = self._message()
        return None if text is None else text.encode("utf-8", "replace").decode()

    def _message(self) -> str | None:
        line = self._line(PROMPT)
        if line is None or not line.lstrip().startswith(QUOTES):
            return line
        block = line.lstrip()[len(QUOTES) :]
        while not block.rstrip().endswith(QUOTES):
            more = self._line(CONTINUED)
            if more is None:
                return block
            block = f"{block}\n{more}" if block else more
        return block.rstrip()[: -len(QUOTES)].strip("\n")

    def _line(self, prompt: str) -> str | None:
        if self.interactive and sys.stdout.isatty():
            try:
                return input(prompt)
            except EOFError:
                return None
        if self.interactive:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    @staticmethod
    def _save_history(readline: ModuleType) -> None:
        path = history_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        readline.set_history_length(HISTORY_LINES)
        handle, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
        os.close(handle)
        try:
            readline.write_history_file(name)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
