"""Running the benchmark scripts in this process, and git repositories to run them in."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from cli_tools import Ran
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "benchmarks"


def script(name: str) -> Any:
    """A script of benchmarks/ as a module; like Python it finds its neighbours in its own folder."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module(name)


def bench(name: str, *args: object) -> Ran:
    """Run ``python benchmarks/NAME.py args``."""
    command = getattr(script(name), f"{name}_command")
    result = CliRunner().invoke(command, [str(arg) for arg in args], prog_name=f"python benchmarks/{name}.py")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def good(name: str, *args: object) -> Ran:
    """Run one that must succeed."""
    ran = bench(name, *args)
    assert ran.code == 0, ran
    return ran


def refused(name: str, *args: object, code: int = 1) -> str:
    """The last line of stderr of one that must fail; a failure has no other."""
    ran = bench(name, *args)
    lines = [line for line in ran.err.splitlines() if line.strip()]
    assert (ran.code, ran.out) == (code, "") and lines[-1].startswith("Error: ") and len(lines[-1]) < 500, ran
    assert code == 2 or len(lines) == 1, ran
    return lines[-1]


def git(folder: Path, *args: str) -> str:
    """A git command with an author of its own."""
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *who, "-C", str(folder), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, files: dict[str, str]) -> Path:
    """A repository with these files committed."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    commit(folder, files)
    return folder


def commit(folder: Path, files: dict[str, str]) -> str:
    """Write files and commit them; the revision."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "files")
    return git(folder, "rev-parse", "HEAD")
