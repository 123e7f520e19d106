"""``gemma4 batch`` as a process: killed, interrupted, logged."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from batch_tools import FLAGS, question, read_rows, timeless, write_lines
from cli_tools import environment

ROWS = 80
FEW = 20
"""Enough where nothing is interrupted."""
QUICK = {"PARALLEL": "0", "NOOPT": "1", "GEMMA4_THREADS": "1"}
"""The test processes fill the cores; plain loops compile faster."""


def begin(folder: Path, name: str, *more: object, **settings: Any) -> subprocess.Popen[str]:
    files = ("--input", folder / "in.jsonl", "--output", folder / f"{name}.jsonl")
    command = [sys.executable, "-m", "gemma4_core.cli", "batch", *map(str, (*FLAGS, *files, *more))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment(**QUICK), **{**pipes, **settings})


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: subprocess.Popen[str], path: Path, rows: int) -> None:
    """Wait until so many rows are there, or the process has ended."""
    limit = time.monotonic() + 120
    while process.poll() is None and written(path) < rows and time.monotonic() < limit:
        time.sleep(0.005)


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_lines(tmp_path / "in.jsonl", [
        question(f"row-{number}", temperature=0.9 * (number % 3), ignore_eos=True, max_tokens=6 + number % 12,
                 n=1 + number % 2)
        for number in range(getattr(request, "param", ROWS))
    ])
    return tmp_path


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_unbroken(folder: Path, kills: int) -> None:
    chance, out = random.Random(4), folder / "killed.jsonl"
    assert begin(folder, "unbroken", "--parallel", 3).wait() == 0
    for kill in range(kills):
        process = begin(folder, "killed", "--parallel", 1 + kill)
        wait_for(process, out, min(written(out) + chance.randrange(1, 14), ROWS))
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.communicate()
    assert written(out) > 0
    process = begin(folder, "killed", "--quiet")
    assert (process.communicate(), process.returncode) == (("", ""), 0)
    assert timeless(read_rows(out)) == timeless(read_rows(folder / "unbroken.jsonl"))


def test_ctrl_c_keeps_what_is_written(folder: Path) -> None:
    out = folder / "out.jsonl"
    process = begin(folder, "out", "--parallel", 1)
    wait_for(process, out, 3)
    process.send_signal(signal.SIGSTOP)  # it may not end before the second one says so
    second = begin(folder, "out")
    said = second.communicate()
    assert second.returncode == 1 and said[0] == "" and "another process writes to it" in said[1]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    said = process.communicate()
    assert (said[0], said[1].strip(), process.returncode) == ("", "", 130)
    rows = read_rows(out)
    assert 3 <= len(rows) < ROWS and out.read_text().endswith("}\n")
    before = out.read_bytes()
    assert begin(folder, "out").wait() == 0
    assert out.read_bytes().startswith(before) and len(read_rows(out)) == ROWS


@pytest.mark.parametrize("folder", [FEW], indirect=True)
def test_a_log_line_every_few_seconds_unless_quiet(folder: Path) -> None:
    code = ("import sys, gemma4_core.console as console; console.LOG_SECONDS = 0.02\n"
            "from gemma4_core.cli import main; main(sys.argv[1:])")
    command = [sys.executable, "-c", code, "batch", *map(str, FLAGS), "--input", str(folder / "in.jsonl")]
    settings: dict[str, Any] = {"text": True, "env": environment(**QUICK), "capture_output": True}
    ran = subprocess.run([*command, "--output", str(folder / "a.jsonl")], **settings)
    lines = [line for line in ran.stderr.splitlines() if "rows" in line]
    assert (ran.returncode, ran.stdout) == (0, "") and len(lines) > 1
    assert all(f" of {FEW} rows, 0 failed, " in line and line.endswith(" left") for line in lines)
    ran = subprocess.run([*command, "--output", str(folder / "b.jsonl"), "--quiet"], **settings)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("folder", [FEW], indirect=True)
def test_a_bar_on_a_terminal(folder: Path) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = begin(folder, "out", stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0 and process.communicate()[0] == ""
    assert b"answering" in shown and b"tok/s" in shown and f"{FEW} rows in ".encode() in shown
