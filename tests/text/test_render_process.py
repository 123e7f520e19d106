"""The process that renders chat templates: its limits, its life, and what happens where there is none."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path

import pytest

from gemma4_core.devices.memory import process_memory_bytes
from gemma4_core.errors import InputError, TokenizerError
from gemma4_core.text import ChatTemplate, render_process
from gemma4_core.text.render_process import RenderFault, render

BOMB = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
POSIX = pytest.mark.skipif(os.name != "posix", reason="forks and signals")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    render_process.end()
    yield
    render_process.end()


def pid() -> int:
    assert render_process._running is not None
    return render_process._running._process.pid


def gone(number: int) -> bool:
    """Whether a process ends within seconds."""
    for _ in range(1000):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return True
        with contextlib.suppress(OSError):
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # its new parent may not look at it
        time.sleep(0.01)
    return False


@LINUX
def test_the_limits_are_set():
    assert render("{{ 1 }}", {}) == "1"
    lines = Path(f"/proc/{pid()}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert soft["Max address space"] == str(render_process.MEMORY) and soft["Max open files"] == "3"
    assert soft["Max file size"] == soft["Max processes"] == "0"
    assert int(soft["Max cpu time"]) < 60


@LINUX
def test_it_has_no_environment_no_files_and_no_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with open(__file__, "rb") as file:
        os.set_inheritable(file.fileno(), True)
        render("x", {})
        folder = Path(f"/proc/{pid()}")
        assert b"HF_TOKEN" not in (folder / "environ").read_bytes() and os.readlink(folder / "cwd") == "/"
        assert len(os.listdir(folder / "fd")) == 3


@pytest.mark.parametrize(
    "statement", ["import os; os.open('/etc/passwd', 0)", "import os; os.open('/tmp/x', 65)", "import os; os.fork()"]
)
@LINUX
def test_code_that_gets_out_of_the_sandbox_can_do_little(statement: str):
    """Run with the process's limits: no file is opened, no process started."""
    if "fork" in statement and os.getuid() == 0:
        pytest.skip("the number of root's processes is not limited")
    code = f"from gemma4_core.text.sandbox import confine; import os; confine(1 << 29)\n{statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and ("Too many open files" in done.stderr or "BlockingIOError" in done.stderr)


def test_one_process_serves_all_templates():
    render("a", {})
    first = pid()
    assert render("b{{ x }}", {"x": "é\ud800"}) == "bé\ud800" and pid() == first


def test_a_rendering_that_is_stopped_costs_no_other(monkeypatch: pytest.MonkeyPatch):
    render("x", {})
    first = pid()
    monkeypatch.setattr(render_process, "SECONDS", 0.2)
    with pytest.raises(RenderFault, match=r"longer than 0.2 seconds"):
        render(BOMB, {})
    assert gone(first) and render("{{ 2 }}", {}) == "2"


@POSIX
def test_a_process_that_somebody_killed_costs_nothing():
    render("x", {})
    os.kill(pid(), signal.SIGKILL)
    assert render("{{ 3 }}", {}) == "3"


@POSIX
def test_a_process_that_dies_in_every_rendering_is_an_error(monkeypatch: pytest.MonkeyPatch):
    exchange = render_process._Process._exchange

    def killed(self, request: bytes, seconds: float):
        if request:
            self._process.kill()
        return exchange(self, request, seconds)

    monkeypatch.setattr(render_process._Process, "_exchange", killed)
    with pytest.raises(RenderFault, match="its process ended"):
        render("x", {})


def test_memory_is_watched_where_the_system_sets_no_limit(monkeypatch: pytest.MonkeyPatch):
    def grown(number: int) -> int:
        return render_process.MEMORY + 1 if render_process._running._ready else 0

    monkeypatch.setattr(render_process, "process_memory_bytes", grown)
    with pytest.raises(RenderFault, match="more than 512 MiB of memory"):
        render(BOMB, {})


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="not known there")
def test_the_memory_of_a_process_is_known():
    assert 5 << 20 < process_memory_bytes(os.getpid()) < 64 << 30
    assert process_memory_bytes(2**22 + 1) == 0


def test_values_nested_too_deeply_are_an_input_error():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="deep"):
        render("x", {"deep": deep})
    with pytest.raises(InputError, match="nested too deeply"):
        ChatTemplate({"default": "x"}, Path("x"), {}).render([{"role": "user", "content": "Hi"}], deep=deep)


@POSIX
def test_a_forked_process_renders_in_one_of_its_own():
    assert render("{{ 4 }}", {}) == "4"
    first = pid()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if render("{{ 5 }}", {}) == "5" and pid() != first else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert render("{{ 6 }}", {}) == "6" and pid() == first


@POSIX
def test_a_fork_in_the_midst_of_a_rendering_holds_no_lock():
    thread = threading.Thread(target=lambda: render("{{ range(99999) | sum }}" * 30, {}))
    thread.start()
    while not render_process._lock.locked() and thread.is_alive():
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if render("{{ 5 }}", {}) == "5" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


RUNS = """
import os, signal
from gemma4_core.text import render_process
render_process.render("x", {})
print(render_process._running._process.pid, flush=True)
"""


@POSIX
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "raise SystemExit(3)"])
def test_it_ends_with_its_parent(end: str):
    done = subprocess.run([sys.executable, "-X", "dev", "-c", RUNS + end], capture_output=True, text=True, timeout=60)
    assert gone(int(done.stdout)) and done.stderr == ""


@POSIX
def test_interrupts_of_the_terminal_do_not_reach_it():
    render("x", {})
    assert os.getsid(pid()) != os.getsid(0) and os.getpgid(pid()) != os.getpgid(0)


@POSIX
def test_an_interrupted_rendering_leaves_no_reply_for_the_next():
    render("x", {})
    first = pid()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            render(BOMB, {})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert gone(first) and render("{{ 7 }}", {}) == "7"


def test_starting_ahead_is_not_waited_for_and_used():
    render_process.start()
    first = pid()
    assert render("{{ 8 }}", {}) == "8" and pid() == first


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (None, "sys.executable is not a Python interpreter that runs sandbox.py; name one with multiprocessing.set"),
        ("/nowhere/python", "cannot be rendered: No such file or directory"),
        ("/bin/false", "/bin/false did not start for it: it said nothing"),
        ("/bin/cat", "/bin/cat did not start for it: "),
    ],
)
@POSIX
def test_no_interpreter_is_said(monkeypatch: pytest.MonkeyPatch, program: str | None, says: str):
    monkeypatch.setattr(spawn, "get_executable", lambda: program)
    render_process.start()
    with pytest.raises(TokenizerError) as caught:
        ChatTemplate({"default": "x"}, Path("t.jinja"), {}).render([{"role": "user", "content": "Hi"}])
    assert says in str(caught.value) and str(caught.value).startswith("t.jinja: the chat template cannot be rendered")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_frozen_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(RenderFault, match="not a Python interpreter") as caught:
        render("x", {})
    assert caught.value.kind == "process"
