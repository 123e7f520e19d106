"""Chat templates rendered in a process of their own, with limits on time, memory and output.

One process serves all templates and threads of this one, is started when needed (or ahead, by ``start``), and is ended
and replaced where a rendering goes beyond a limit, which costs that rendering only. It ends with this process: its
input closes. It runs the interpreter of ``multiprocessing.spawn.get_executable``, so a program that embeds or freezes
Python names one with ``multiprocessing.set_executable``. What runs there is ``gemma4_core.text.sandbox``.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import marshal
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma4_core.devices.memory import process_memory_bytes

SECONDS = 10.0
"""Of one rendering, compiling the template included."""
START_SECONDS = 60.0
"""Until the process is ready."""
MEMORY = 512 << 20
"""Bytes that the process may use."""
CHARACTERS = 1 << 25
"""Of a prompt. The longest context holds a few million."""
TICK = 0.01
"""Seconds between two looks at a process that renders."""
PASSED = ("TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Environment variables that the process gets: the time zone, and what an interpreter may need to start."""
_LOST = "lost"
_POLLS = hasattr(select, "poll")
"""Windows polls no pipes; a timer ends the process there."""


class RenderFault(Exception):
    """A template that was not rendered.

    ``kind`` is ``refusal`` (it called ``raise_exception``), ``sandbox``, ``syntax``, ``recursion``, ``failure`` (any
    other error in it), ``limit`` (it was stopped) or ``process`` (there is no process to render in). ``line`` is the
    template's, where known.
    """

    def __init__(self, kind: str, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.kind, self.line = kind, line


class _Stopped(Exception):
    """A rendering is stopped: for ``time`` or ``memory``."""


class _Process:
    """A running process and its pipes; one request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.used = False
        """Whether it has rendered already, so that something may be left of that in its memory."""
        self._ready = False
        self._last_words = ""
        self._ticks = 0
        """What is left of the time of the request under way."""
        self._more = 0
        """What may be added to it where the machine is busy and the process has not computed so long."""
        self._seconds, self._computed = 0.0, 0.0
        """What the request may take, and what the process had computed when it came."""
        flags: dict[str, Any] = {"start_new_session": True}  # Ctrl-C in the terminal is not for it
        if sys.platform == "win32":
            flags = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        self._command = _command()
        environment = {name: os.environ[name] for name in PASSED if name in os.environ}
        self._process = subprocess.Popen(
            self._command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, cwd=os.path.abspath(os.sep), **flags,
        )
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        self._requests, self._replies, self._errors = (pipe for pipe in pipes if pipe is not None)
        if _POLLS:
            os.set_blocking(self._requests.fileno(), False)
            os.set_blocking(self._errors.fileno(), False)  # a child of it may hold the other end
            self._writable, self._readable = select.poll(), select.poll()
            self._writable.register(self._requests, select.POLLOUT)
            self._readable.register(self._replies, select.POLLIN)

    def ask(self, request: bytes, seconds: float) -> dict[str, Any]:
        """The reply to a request. Its kind is ``lost`` where the process ended, ``time`` or ``memory`` where it was
        ended for that; then, and after any exception, it is closed."""
        try:
            if not self._ready:
                started = self._exchange(b"", START_SECONDS)
                if started["kind"] != "ready":
                    raise RenderFault("process", f"{self._command[0]} did not start for it: {self._last_words}")
                self._ready = True
            reply = self._exchange(len(request).to_bytes(8, "little") + request, seconds)
        except BaseException:
            self.close()
            raise
        self.used = True
        return reply

    def _exchange(self, request: bytes, seconds: float) -> dict[str, Any]:
        self._ticks = max(1, round(seconds / TICK))
        self._more = max(0, round((SECONDS - seconds) / TICK))
        self._seconds, self._computed = seconds, computed_seconds(self._process.pid)
        timer = None if _POLLS else threading.Timer(seconds, self._process.kill)
        if timer is not None:
            timer.start()
        try:
            self._write(request)
            size = int.from_bytes(self._read(8), "little")
            # a character is four bytes at most, or a \u escape of six
            if size > 6 * CHARACTERS + (1 << 16):
                raise EOFError
            reply = json.loads(self._read(size).decode("utf-8", "surrogatepass"))
            if not isinstance(reply, dict) or not isinstance(reply.get("kind"), str):
                raise EOFError
        except _Stopped as stop:
            reply = {"kind": str(stop)}
        except (OSError, EOFError, ValueError, RecursionError):
            reply = {"kind": _LOST if timer is None or timer.is_alive() else "time"}
        finally:
            if timer is not None:
                timer.cancel()
        if reply["kind"] in (_LOST, "time", "memory"):
            self.close()
        return reply

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._writable)
            rest = rest[self._requests.write(rest) or 0 :]

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(self._readable)
            part = self._replies.read(min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, poll: Any) -> None:
        """Wait for a pipe. Ticks are counted, not the clock: this process may be stopped by the terminal meanwhile.
        Raises _Stopped where rendering takes too long or too much."""
        while _POLLS and not poll.poll(1000 * TICK):
            self._ticks -= 1
            if self._ticks < 0 and self._more and self._idle():
                self._ticks, self._more = 0, self._more - 1
            if self._ticks < 0:
                raise _Stopped("time")
            # where the system does not hold the process to its limit
            if process_memory_bytes(self._process.pid) > MEMORY:
                raise _Stopped("memory")

    def _idle(self) -> bool:
        """Whether the process has computed for less than the request's time: others had the processor."""
        now = computed_seconds(self._process.pid)
        return now > 0 and now - self._computed < self._seconds

    def close(self) -> None:
        """End the process and wait for its end."""
        if not self.closed:
            self._process.kill()
            self._process.wait()
            said = (self._errors.read(1 << 16) or b"").decode(errors="replace").strip()
            self._last_words = said.rpartition("\n")[2][:200] or "it said nothing"
            self._close_pipes()

    def _close_pipes(self) -> None:
        self.closed = True
        for pipe in (self._requests, self._replies, self._errors):
            pipe.close()

    def disown(self) -> None:
        """Leave the process to the one that forked this one."""
        self._close_pipes()
        self._process.returncode = 0  # not this one's child, so never waited for


def computed_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


_lock = threading.Lock()
_running: _Process | None = None


def start() -> None:
    """Start the process ahead of the first rendering, without waiting for it. What fails is told by ``render``."""
    with contextlib.suppress(RenderFault), _lock:
        _process()


def render(template: str, values: Mapping[str, Any], seconds: float = SECONDS) -> str:
    """The text that a template writes. Raises RenderFault, and ValueError for values that are nested too deeply.

    Args:
        template: the template's own text.
        values: what it is given by name: plain values only (None, numbers, text, tuples, lists, dicts).
        seconds: how long it may compute, at most ``SECONDS`` by the clock.
    """
    global _running
    request = marshal.dumps((template, dict(values)))
    with _lock:
        while True:
            process = _process()
            used = process.used
            try:
                reply = process.ask(request, min(seconds, SECONDS))
            finally:
                if process.closed:
                    _running = None
            # what earlier renderings left, or somebody who ended the process, decides nothing
            if reply["kind"] not in (_LOST, "memory") or not used:
                break
    text, line = str(reply.get("text", "")), reply.get("line")
    if reply["kind"] == "text":
        return text
    stopped = {
        "time": f"it runs longer than {min(seconds, SECONDS):g} seconds",
        "memory": f"it needs more than {MEMORY >> 20} MiB of memory",
        "long": f"it writes more than {CHARACTERS >> 20} million characters",
        _LOST: "its process ended",
    }
    if reply["kind"] in stopped:
        raise RenderFault("limit", stopped[reply["kind"]])
    raise RenderFault(reply["kind"], text, line if isinstance(line, int) else None)


def _process() -> _Process:
    """The running process, or a new one; ``_lock`` is held."""
    global _running
    if _running is None:
        try:
            _running = _Process()
        except OSError as fault:
            raise RenderFault("process", f"{fault.strerror or fault}") from fault
    return _running


def _command() -> list[str]:
    from multiprocessing import spawn

    program = os.fsdecode(spawn.get_executable() or "")
    script = Path(__file__).with_name("sandbox.py")
    if not program or (getattr(sys, "frozen", False) and program == sys.executable) or not script.is_file():
        raise RenderFault(
            "process",
            f"{program or 'sys.executable'} is not a Python interpreter that runs {script.name}; name one with "
            "multiprocessing.set_executable",
        )
    found = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    folders = [str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin is not None]
    limits = [str(MEMORY), str(CHARACTERS), str(SECONDS)]
    # -I and -S: neither the environment nor site-packages decide what runs there
    return [program, "-I", "-S", str(script), *limits, *dict.fromkeys(folders)]


def end() -> None:
    """End the process, if one runs; the next rendering starts another."""
    global _running
    if _running is not None:
        _running.close()
        _running = None


def _after_fork() -> None:
    """A forked process starts one of its own."""
    global _lock, _running
    _lock = threading.Lock()
    if _running is not None:
        _running.disown()
        _running = None


atexit.register(end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
