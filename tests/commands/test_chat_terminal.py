"""``gemma4 chat`` and ``generate`` on a pseudo-terminal: prompts, history, Ctrl-C, Ctrl-D, thoughts, control codes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import environment

DRIVER = """
import os, signal, sys, time
# a terminal of its own, so that Ctrl-C becomes a signal; runs of tests in the background ignore it
os.close(os.open(os.ttyname(0), os.O_RDWR))
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv.pop(1))
from cli_tools import FakeModel, parts
from gemma4_core.generation.parts import Part
import gemma4_core.loading

def answer(asked):
    prompt = asked["prompt"]
    said = prompt[-1]["content"] if isinstance(prompt, list) else prompt
    if said == "slowly":
        for number in range(600):
            yield Part(f"word{number} ", token=number)
            time.sleep(0.05)
    elif said == "think":
        yield from parts("hm, let me see", "done", kinds=("thinking", "text"))
    elif said == "attack":
        yield from parts("\\x1b]0;owned\\x07clean\\ttab\\nline")
    elif said == "fail":
        raise RuntimeError("device lost")
        yield
    else:
        yield from parts(f"you said {said!r}")

model = FakeModel(answer)
def load(name, check=None, **asked):
    if check is not None:
        check(model.processor)
    return model

gemma4_core.loading.load_pretrained = load
from gemma4_core.cli import main
main(sys.argv[1:])
"""


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *args: str, state: Path, stdout: int | None = None) -> None:
        self.master, slave = pty.openpty()
        env = environment(XDG_STATE_HOME=str(state), TERM="xterm", INPUTRC="/dev/null")
        env.pop("NO_COLOR", None)
        command = [sys.executable, "-c", DRIVER, str(Path(__file__).parents[1]), *args]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave if stdout is None else stdout, stderr=slave, env=env,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, pattern: str, seconds: float = 60) -> str:
        """Everything up to where the pattern appears; what follows is left for the next wait."""
        until = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < until, f"no {pattern!r} in {self.seen!r}"
            if not self._read(0.2) and self.process.poll() is not None and not self._read(0):
                raise AssertionError(f"ended before {pattern!r}: {self.seen!r}")
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def interrupt(self, pattern: str) -> None:
        """Press Ctrl-C, as people do, again where nothing happens: CPython's line editor misses a signal that comes
        after its last look and before it waits for keys (3.11, Modules/readline.c, readline_until_enter_or_signal)."""
        for _ in range(5):
            self.type("\x03")
            until = time.monotonic() + 12
            while time.monotonic() < until and not re.search(pattern, self.seen):
                self._read(0.2)
            if re.search(pattern, self.seen):
                break
        self.wait(pattern, 1)

    def ended(self, seconds: float = 60) -> int:
        """The exit code."""
        until = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < until, "still running"
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.seen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_a_conversation_at_a_terminal(terminals: list[Terminal], tmp_path: Path) -> None:
    terminal = Terminal("chat", "-m", "m", state=tmp_path)
    terminals.append(terminal)
    greeting = terminal.wait(">>> ")
    assert "/models/fake on fake" in greeting and "/help" in greeting
    terminal.type("hello\r")
    assert "you said 'hello'\n" in terminal.wait("'hello'\n.*>>> ")
    terminal.type('"""two\r')
    terminal.wait(r"\.\.\. ")
    terminal.type('lines"""\r')
    terminal.wait(re.escape(r"you said 'two\nlines'"))
    terminal.wait(">>> ")
    terminal.type("\x1b[A\x1b[A\x1b[A\r")  # three lines up in the history
    terminal.wait("you said 'hello'\n")
    terminal.wait(">>> ")
    terminal.type("think\r")
    assert "\x1b[2mhm, let me see\x1b[0m\n" in terminal.wait("done\n")
    terminal.wait(">>> ")
    terminal.type("fail\r")
    assert "Error: RuntimeError: device lost" in terminal.wait(">>> ")
    terminal.type("/nonsense\r")
    assert "Error: /nonsense" in terminal.wait(">>> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
    history = (tmp_path / "gemma4" / "chat_history").read_text()
    assert "hello\n" in history and (tmp_path / "gemma4" / "chat_history").stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminals: list[Terminal], tmp_path: Path) -> None:
    terminal = Terminal("chat", "-m", "m", state=tmp_path)
    terminals.append(terminal)
    terminal.wait(">>> ")
    terminal.type("slowly\r")
    terminal.wait("word3 ")
    terminal.type("\x03")
    assert "word200" not in terminal.wait(r"\(stopped\)")
    terminal.wait(">>> ")
    terminal.type("half a line")
    terminal.wait("half a line")
    terminal.interrupt("Ctrl-D leaves")
    terminal.wait(">>> ")
    terminal.type("still here\r")
    terminal.wait("you said 'still here'")
    terminal.wait(">>> ")
    terminal.type("/exit\r")
    assert terminal.ended() == 0


def test_history_is_kept_for_the_next_time_unless_not_wanted(terminals: list[Terminal], tmp_path: Path) -> None:
    for args, typed in ((("--no-history",), "secret"), ((), "remember me")):
        terminal = Terminal("chat", "-m", "m", *args, state=tmp_path)
        terminals.append(terminal)
        terminal.wait(">>> ")
        terminal.type(f"{typed}\r/exit\r")
        assert terminal.ended() == 0
    terminal = Terminal("chat", "-m", "m", state=tmp_path)
    terminals.append(terminal)
    terminal.wait(">>> ")
    terminal.type("\x1b[A\x1b[A\r")
    terminal.wait("you said 'remember me'")
    terminal.wait(">>> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert "secret" not in (tmp_path / "gemma4" / "chat_history").read_text()


def test_generate_at_a_terminal_shows_statistics_and_disarms_control_codes(
    terminals: list[Terminal], tmp_path: Path
) -> None:
    terminal = Terminal("generate", "-m", "m", "--prompt", "attack", "--raw", state=tmp_path)
    terminals.append(terminal)
    shown = terminal.wait("answer 2 tokens")
    assert "\x1b]" not in shown and "\ufffd]0;owned\ufffdclean\ttab\nline\n" in shown
    assert terminal.ended() == 0


def test_ctrl_c_ends_generate_with_130(terminals: list[Terminal], tmp_path: Path) -> None:
    terminal = Terminal("generate", "-m", "m", "--prompt", "slowly", "--raw", state=tmp_path)
    terminals.append(terminal)
    terminal.wait("word3 ")
    terminal.type("\x03")
    assert terminal.ended() == 130 and "Traceback" not in terminal.seen


def test_only_the_answer_goes_to_a_file(terminals: list[Terminal], tmp_path: Path) -> None:
    with open(tmp_path / "out.txt", "wb") as out:
        terminal = Terminal("chat", "-m", "m", state=tmp_path, stdout=out.fileno())
    terminals.append(terminal)
    terminal.wait(">>> ")
    terminal.type("to a file\r")
    terminal.wait(">>> ")
    terminal.type("think\r")
    terminal.wait("let me see")
    terminal.wait(">>> ")
    terminal.type("/help\r")
    terminal.wait("Ctrl-C stops an answer")
    terminal.wait(">>> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
    assert (tmp_path / "out.txt").read_text() == "you said 'to a file'\ndone\n"


def test_tab_completes_a_command(terminals: list[Terminal], tmp_path: Path) -> None:
    terminals.append(terminal := Terminal("chat", "-m", "m", state=tmp_path))
    terminal.wait(">>> ")
    terminal.type("/und\t\r")
    assert "/undo" in terminal.wait("there is no message yet")
    terminal.wait(">>> ")
    terminal.type("\x04")
    assert terminal.ended() == 0
