"""One line for every failure, and the exit code that belongs to it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator

import click

from gemma4_core.errors import CheckpointError, Gemma4Error

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130
LINE_LIMIT = 490
"""Characters of the longest error line."""
TAIL = 150
"""Characters that are kept of the end of a longer line, which usually names the next step."""
DEBUG = "GEMMA4_DEBUG"


def debugging() -> bool:
    """Whether GEMMA4_DEBUG asks for tracebacks and all faults."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def escaped(text: str) -> str:
    """Text with control characters, line ends and lone surrogates written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shortened(text: str, limit: int = LINE_LIMIT) -> str:
    """Text of at most ``limit`` characters, with its middle left out where it is longer."""
    return text if len(text) <= limit else f"{text[: limit - TAIL - 3]} … {text[-TAIL:]}"


def describe(error: BaseException) -> str:
    """The one-line message for any exception, without ``Error:`` in front."""
    if isinstance(error, click.ClickException):
        return escaped(error.format_message())
    if isinstance(error, Gemma4Error):
        return escaped(str(error).strip()) or type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        return describe(error.exceptions[0])
    text = escaped(" ".join(str(error).split()))
    if isinstance(error, MemoryError):
        detail = f" ({text})" if text else ""
        return f"out of memory{detail}: use a smaller model, a smaller --context or a larger machine"
    if isinstance(error, RecursionError):
        return "something is nested too deeply to be read (a template, a JSON file or a kernel)"
    if isinstance(error, subprocess.CalledProcessError):
        return _compiler_failure(error)
    if isinstance(error, OSError) and error.strerror:
        return _os_failure(error)
    if isinstance(error, SystemExit):
        return text
    return f"{type(error).__name__}{f': {text}' if text else ''} ({DEBUG}=1 shows where)"


def _os_failure(error: OSError) -> str:
    names = [escaped(os.fsdecode(n)) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)]
    where = " -> ".join(names) or "input or output"
    hints = {errno.ENOSPC: "; free some space or choose another folder", errno.EACCES: "; check its permissions"}
    return f"{where}: {error.strerror}{hints.get(error.errno or 0, '')}"


def _compiler_failure(error: subprocess.CalledProcessError) -> str:
    command = error.cmd[0] if isinstance(error.cmd, list | tuple) and error.cmd else error.cmd
    output = error.stderr or error.output or b""
    text = output.decode("utf-8", "replace") if isinstance(output, bytes) else str(output)
    line = next((line for line in text.splitlines() if "error" in line.lower()), "")
    what = f"{escaped(str(command))} failed with exit code {error.returncode}"
    return f"{what}{f': {escaped(line.strip())}' if line else ''} (gemma4 doctor checks the compiler)"


def faults(error: BaseException) -> tuple[str, ...]:
    """All faults that an error lists."""
    return error.faults if isinstance(error, CheckpointError) else ()


def report(error: BaseException) -> None:
    """Print a failure on stderr as one line; with ``GEMMA4_DEBUG=1`` also its traceback and all of its faults."""
    if debugging():
        traceback.print_exception(error, file=sys.stderr)
        for fault in faults(error):
            _line(escaped(fault))
    _line(shortened(f"Error: {describe(error)}"))


def report_usage(error: click.UsageError) -> None:
    """Print click's usage block, whose last line names the culprit."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _line(f"{error.format_message()}\n")
        _line("Error: Missing command.")
        return
    if error.ctx is not None:
        _line(error.ctx.get_usage())
        names = error.ctx.help_option_names
        if names and error.ctx.command.get_help_option(error.ctx) is not None:
            _line(f"Try '{error.ctx.command_path} {names[0]}' for help.\n")
    _line(shortened(f"Error: {describe(error)}"))


def _line(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        print(text, file=sys.stderr, flush=True)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and the chain of its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def handle(error: BaseException) -> int:
    """Report whatever ended a command, and return the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, click.Abort):
        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            return INTERRUPTED
        report(click.ClickException("aborted: input ended too early"))
        return FAILURE
    if isinstance(error, click.UsageError):
        report_usage(error)
        return USAGE
    if isinstance(error, SystemExit):
        return _exit_code(error)
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return FAILURE  # the reader closed the pipe
    report(error)
    return error.exit_code if isinstance(error, click.ClickException) else FAILURE


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or OK
    report(error)
    return FAILURE
