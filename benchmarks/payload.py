"""Shared by the benchmarks: JSON without NaN, child processes, and how a script starts."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from gemma4_core.checkpoint.atomic import atomic_file, make_parents
from gemma4_core.cli.failures import describe
from gemma4_core.errors import Gemma4Error, InputError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def start(command: click.Command, script: str) -> NoReturn:
    """Run a script's command as ``gemma4`` runs its own: a failure is one line on stderr."""
    from gemma4_core.cli.group import ensure_standard_streams, quiet_libraries

    ensure_standard_streams()
    quiet_libraries()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # child processes are ended first
    command.main(prog_name=f"python benchmarks/{Path(script).name}")
    sys.exit(0)


# ------------------------------------------------------------------------------------------------ JSON


def parse(text: str, who: str) -> dict[str, Any]:
    """The JSON object that a process printed; there must be no other output.

    Raises InputError, naming ``who``, for other output and for NaN or an infinity anywhere in it.
    """
    if not text.strip():
        raise InputError(f"{who} printed nothing on stdout; a JSON object is expected there")

    def refuse(name: str) -> NoReturn:
        raise InputError(f"{who} printed {name}, which is not a result; nothing was recorded")

    try:
        found = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise InputError(f"{who} printed {_beginning(text)} on stdout; one JSON object is expected there") from None
    if not isinstance(found, dict):
        raise InputError(f"{who} printed {_beginning(text)} on stdout; a JSON object is expected there")
    if (where := next(infinite(found), None)) is not None:
        raise InputError(f"{who} printed a number for {where} that is not finite; nothing was recorded")
    return found


def infinite(value: Any, where: str = "") -> Iterable[str]:
    """Places of numbers that are not finite, such as ``1e999``."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from infinite(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from infinite(inner, f"{where}[{number}]")


def score_of(payload: Mapping[str, Any], who: str) -> float:
    """The ``score`` of a payload. Raises InputError where it is not a finite number."""
    score = payload.get("score")
    try:
        if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
            return float(score)
    except OverflowError:  # a whole number beyond any float
        pass
    shown = "no score" if "score" not in payload else f"the score {_beginning(json.dumps(score))}"
    raise InputError(f"{who} printed {shown}; its JSON object needs a finite number named score")


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:80]}…")


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all; folders above it are made. Raises CheckpointError and, for NaN, ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with into(path) as file:
        file.write(text + "\n")


@contextlib.contextmanager
def into(path: Path, mode: str = "w") -> Any:
    """An open file that appears when the block ends well; folders above it are made."""
    try:
        make_parents(path.parent)
    except OSError as fault:
        raise InputError(f"{path}: its folder cannot be made ({fault.strerror}); give another path") from fault
    with atomic_file(path, mode) as file:
        yield file


def now() -> str:
    """The time in UTC, as ``2026-01-31T12:00:00Z``."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ------------------------------------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Ended:
    """A process that ended: ``code`` is negative if a signal ended it, None if it timed out."""

    code: int | None
    out: str
    err: str

    @property
    def why(self) -> str:
        """One line on why it failed."""
        if self.code is None:
            return "it timed out"
        if self.code < 0:
            name = signal.Signals(-self.code).name if -self.code in set(signal.Signals) else f"signal {-self.code}"
            killed = "; the system does this when memory runs out" if name == "SIGKILL" else ""
            return f"ended by {name}{killed}"
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        last = lines[-1].removeprefix("Error: ") if lines else "nothing on stderr"
        return f"exit code {self.code}: {last}"


def run(command: Sequence[str], more: Mapping[str, str] | None = None, seconds: float | None = None) -> Ended:
    """Run a program to its end, or for this many seconds; it and its children are ended with this process.

    Output goes through files: a process that is killed leaves children that would hold a pipe open.
    Raises InputError where it cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **(more or {})},
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as fault:
            reason = getattr(fault, "strerror", None) or fault
            raise InputError(f"{command[0]} cannot be run: {reason}") from fault
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Ended(code, *texts)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def python(script: str, *args: object) -> list[str]:
    """The command line of another script of this folder."""
    return [sys.executable, str(HERE / script), *(str(arg) for arg in args)]


def failed(error: BaseException) -> str:
    """One line for an error."""
    return str(error) if isinstance(error, Gemma4Error) else describe(error)


def git(*args: str, folder: Path | None = None, check: bool = True) -> str:
    """The output of a git command. Raises InputError with its last line if it fails or git is missing."""
    command = ["git", *(["-C", str(folder)] if folder else []), *args]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="surrogateescape",
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except OSError as fault:
        raise InputError(f"git cannot be run: {fault.strerror}; install it") from fault
    if done.returncode and check:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"git {args[0]}: {said[-1][:200]}")
    return done.stdout if not done.returncode else ""


def revision(folder: Path = ROOT) -> str | None:
    """The git revision of a folder, with ``+`` after it if tracked files differ; None outside a repository."""
    with contextlib.suppress(InputError):
        commit = git("rev-parse", "--short=12", "HEAD", folder=folder).strip()
        changed = git("status", "--porcelain", "--untracked-files=no", folder=folder).strip()
        return commit + ("+" if changed else "")
    return None
