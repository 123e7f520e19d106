"""What paired.py compares: a revision, a worktree, a file inside one, or a command; and how a benchmark runs on it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from payload import ROOT, git, revision

from gemma4_core.errors import InputError

TARGET = "GEMMA4_BENCHMARK_TARGET"
"""Environment variable that names the target for a benchmark: the file, else the worktree."""
MARKS = (".git", "pyproject.toml", "src", "benchmarks")
"""Entries that mark the top folder of a worktree, the most reliable first."""


@dataclass(frozen=True)
class Target:
    """One side of a comparison: a worktree with the path in it that was named, or a command."""

    side: str
    given: str
    worktree: Path | None = None
    file: Path | None = None
    command: tuple[str, ...] = ()
    revision: str | None = None
    metadata: Path | None = None
    """A folder with the worktree's own entry points: plugins that only the worktree has are loaded too, and no others
    of this package."""


@contextlib.contextmanager
def opened(side: str, given: str | None, command: str | None) -> Iterator[Target]:
    """A target, or without one a command, ready to run; a revision is checked out in a folder of its own, which is
    removed when the block ends.

    Raises InputError for anything else.
    """
    if given is None:
        yield Target(side, command or "", command=words(side, command or ""))
        return
    path = Path(given).expanduser()
    if path.exists():
        worktree = top_of(path.resolve())
        file = path.resolve() if path.resolve() != worktree else None
        with metadata(worktree) as entries:
            yield Target(side, given, worktree, file, revision=revision(worktree), metadata=entries)
        return
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{given}^{{commit}}", check=False).strip()
    if commit:
        with checked_out(commit) as worktree, metadata(worktree) as entries:
            yield Target(side, given, worktree, revision=commit[:12], metadata=entries)
        return
    if len(given.split()) > 1 and shutil.which(words(side, given)[0]):
        yield Target(side, given, command=words(side, given))
        return
    raise InputError(f"--{side}-target {given[:200]!r} is neither a path, a revision of this repository nor a command")


def words(side: str, command: str) -> tuple[str, ...]:
    """A command line split into words. Raises InputError if it has none or a quote is not closed."""
    try:
        found = tuple(shlex.split(command))
    except ValueError as fault:
        raise InputError(f"--{side}-command {command[:200]!r} cannot be read: {fault}") from None
    if not found:
        raise InputError(f"--{side}-command is empty; give a program and its arguments")
    return found


def top_of(path: Path) -> Path:
    """The top folder of the worktree that contains a path; without any mark, the folder of the file."""
    folders = [path, *path.parents] if path.is_dir() else [*path.parents]
    for mark in MARKS:
        found = next((folder for folder in folders[:-1] if (folder / mark).exists()), None)
        if found is not None:
            return found
    return folders[0]


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A temporary worktree of a commit."""
    with tempfile.TemporaryDirectory(prefix="gemma4-paired-") as folder:
        worktree = Path(folder) / commit[:12]
        git("worktree", "add", "--detach", "--force", str(worktree), commit)
        try:
            yield worktree.resolve()
        finally:
            git("worktree", "remove", "--force", str(worktree), check=False)


@contextlib.contextmanager
def metadata(worktree: Path) -> Iterator[Path | None]:
    """A folder with a package's metadata, made from a worktree's pyproject.toml; None without entry points."""
    try:
        project = tomllib.loads((worktree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name, groups = project["name"], project.get("entry-points", {})
        lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
                 for group, entries in groups.items()]  # fmt: skip
    except (OSError, ValueError, KeyError, AttributeError):
        yield None
        return
    if not lines:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="gemma4-paired-") as folder:
        info = Path(folder) / f"{name.replace('-', '_')}-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {project.get('version', '0')}\n")
        (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        yield Path(folder)


# ------------------------------------------------------------------------------------------------ running


def find_benchmark(benchmark: str, baseline: Target) -> Path:
    """The benchmark script: here (current folder, then this repository), else in the baseline's worktree.

    Raises InputError naming the folders that were searched.
    """
    places = [Path.cwd(), ROOT, *([baseline.worktree] if baseline.worktree else [])]
    for place in dict.fromkeys(places):
        if (place / benchmark).is_file():
            return (place / benchmark).resolve()
    raise InputError(f"--benchmark {benchmark[:200]} is in none of {', '.join(map(str, dict.fromkeys(places)))}")


def command_of(target: Target, benchmark: Path | None, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line that runs a benchmark on a target, and the variables added to its environment.

    In a worktree its own packages come first, the benchmark's folder last: ``-P`` keeps Python from putting it first.
    """
    if target.command:
        return [*target.command, *arguments], {}
    assert target.worktree is not None and benchmark is not None
    source = target.worktree / "src"
    folders = [target.metadata, source if source.is_dir() else target.worktree, benchmark.parent]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([*(str(folder) for folder in folders if folder), *filter(None, inherited)])
    # leave no compiled files in a worktree
    more = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", TARGET: str(target.file or target.worktree)}
    return [sys.executable, "-P", str(benchmark), *arguments], more
