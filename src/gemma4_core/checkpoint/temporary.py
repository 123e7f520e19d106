"""Temporary files and folders of writers. Each has a lock file that is held while its writer lives; the next writer
in the same folder removes those that nobody holds, such as what a killed process left.

Names are ``.<target>.<host><random>.tmp``, with ``.lock`` for the lock file and ``.old`` for what was there before.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

HOST = hashlib.sha256(f"gemma4 {platform.node()}".encode()).hexdigest()[:6]
LOCK_NAME = re.compile(r"\..*\.([0-9a-f]{6})[0-9a-f]{6}\.lock", re.DOTALL)
MARK = "gemma4 writes here"
IDLE_SECONDS = 86_400
"""Where a lock tells nothing, as for one of another host, only what has not changed for this long is removed."""


def short_name(target: Path) -> str:
    """A target's name, cut to leave room for what is put around it: file names have at most 255 bytes."""
    return os.fsencode(target.name)[:100].decode("utf-8", "ignore")


def lock(file: IO[str]) -> bool | None:
    """Lock an open file until it is closed, without waiting; None where the system or the file system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def still_there(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at ``path``, not one that another writer has removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def temporary_path(target: Path) -> Iterator[Path]:
    """A path beside ``target`` for a file or folder that is to take its place; anything left there is removed at the
    end. What dead writers left is removed first. Raises OSError."""
    sweep(target.parent)
    file, held = take(target)
    try:
        yield held.with_suffix(".tmp")
    finally:
        with suppress(OSError):  # whatever cannot be removed is left to the next writer
            clear(held, target)
        file.close()


def take(target: Path) -> tuple[IO[str], Path]:
    """A new lock file for a temporary path, open and locked, and its path."""
    while True:
        path = target.parent / f".{short_name(target)}.{HOST}{secrets.token_hex(3)}.lock"
        try:
            file = open(path, "x", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 (closed by the caller)
        except FileExistsError:
            continue
        try:
            # another writer may just have removed it as a leftover
            if lock(file) is False or not still_there(file, path):
                file.close()
                continue
            file.write(f"{MARK}\n{target.name}")
            file.flush()
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                file.close()
            raise
        return file, path


def sweep(folder: Path) -> None:
    """Remove temporary files and folders in ``folder`` that no living writer holds. Other programs' files are never
    touched: the lock file marks ours."""
    try:
        locks = [entry for entry in os.scandir(folder) if LOCK_NAME.fullmatch(entry.name)]
    except OSError:
        return
    for entry in locks:
        with suppress(OSError):
            if entry.is_file(follow_symlinks=False):
                sweep_one(Path(entry.path))


def sweep_one(path: Path) -> None:
    """Remove what belongs to one lock file, unless its writer may still be alive."""
    temporary, old = path.with_suffix(".tmp"), path.with_suffix(".old")
    # network file systems want a file that is open for writing
    with open(path, "r+", encoding="utf-8", errors="surrogateescape") as file:
        held, (mark, _, name) = lock(file), file.read(4096).partition("\n")
        own = path.name[-17:-11] == HOST
        if held is False or not (own or mark == MARK) or not still_there(file, path):
            return
        if (held is None or not own) and time.time() - newest_change(path, temporary, old) < IDLE_SECONDS:
            return
        clear(path, path.parent / name if name and Path(name).name == name else None)


def clear(path: Path, target: Path | None) -> None:
    """Remove what belongs to a lock file, and the lock file last."""
    remove(path.with_suffix(".tmp"))
    if target is not None:
        restore(path.with_suffix(".old"), target)
    remove(path.with_suffix(".old"))
    path.unlink(missing_ok=True)


def restore(old: Path, target: Path) -> None:
    """Put back what a writer had moved away, if it was stopped before the new one was in place."""
    if old.exists() and not os.path.lexists(target):
        os.replace(old, target)


def newest_change(*paths: Path) -> float:
    """When anything in these files and folders last changed."""
    found = [path for path in paths if os.path.lexists(path)]
    inside = [inner for path in found if path.is_dir() for inner in path.rglob("*")]
    return max(os.lstat(path).st_mtime for path in [*found, *inside])


def remove(path: Path) -> None:
    """Remove a file, link or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
