"""Reading messages: typed, with history, line editing and blocks between triple quotes, or lines of a pipe."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

QUOTES = '"""'
PROMPT, CONTINUED = ">>> ", "... "
HISTORY_LINES = 1000


def history_path() -> Path:
    """Where the history is kept: ``$XDG_STATE_HOME/gemma4/chat_history``."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "gemma4" / "chat_history"


def file_names(word: str) -> list[str]:
    """Paths that begin with a word; folders end in a slash."""
    found = sorted(glob.glob(glob.escape(os.path.expanduser(word)) + "*"))
    return [path + "/" if os.path.isdir(path) else path for path in found]


class LineReader:
    """Reads messages one by one."""

    def __init__(self, keep_history: bool = True) -> None:
        self.interactive = sys.stdin.isatty()
        """Whether stdin is a terminal."""
        self.keep_history = keep_history and self.interactive
        self._readline: ModuleType | None = None
        self.complete: Callable[[str, str], list[str] | None] = lambda before, word: []
        """What Tab offers, given the text before the word and the word; None offers file names."""
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")

    def __enter__(self) -> LineReader:
        if self.interactive and sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                self._bind_tab(readline)
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
        return line.removeprefix("\ufeff").rstrip("\r\n") if line else None

    def _bind_tab(self, readline: ModuleType) -> None:
        """Let Tab complete the word before the cursor."""
        offered: list[str] = []

        def completer(word: str, state: int) -> str | None:
            if state == 0:
                begin = readline.get_begidx()
                found = self.complete(readline.get_line_buffer()[:begin], word)
                offered[:] = file_names(word) if found is None else [f"{item} " for item in found]
            return offered[state] if state < len(offered) else None

        readline.set_completer(completer)
        readline.set_completer_delims(" \t\n")
        libedit = "libedit" in (readline.__doc__ or "")  # macOS
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

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
