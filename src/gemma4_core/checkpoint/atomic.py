"""Files and folders that appear whole or not at all: written beside the target, synced, then swapped."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from gemma4_core.checkpoint.contents import foreign_files, replaceable_checkpoint
from gemma4_core.checkpoint.temporary import temporary_path
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import human_bytes, shown, shown_path

FULL_DISK = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}
Replaceable = Callable[[Path], bool]


class NoRoom(OSError):
    """The disk has too little room for what is to be written, noticed before writing."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.needed, self.free = needed, free


@contextmanager
def atomic_folder(
    target: Path | str, replaceable: Replaceable = replaceable_checkpoint, overwrite: bool = True
) -> Iterator[Path]:
    """A new empty folder to fill; it takes the target's place when the block ends well, and is removed otherwise.

    Args:
        target: path of the folder. Missing parents are made. An existing target must be an empty folder or one that
            ``replaceable`` accepts; it is replaced whole.
        replaceable: by default, whether it holds a checkpoint and nothing else.
        overwrite: False refuses every folder that is not empty.

    Raises:
        CheckpointError: the target is something else, cannot be written, or the disk is full; nothing has changed.
    """
    where = shown_path(target)
    made: list[Path] = []
    try:
        # a link stays and the folder that it leads to is replaced
        final = Path(os.path.realpath(target))
        check_target(final, where, replaceable, overwrite)
        made = make_parents(final.parent)
        with temporary_path(final) as temporary:
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)
            swap(temporary, final, where, replaceable, overwrite)
            sync_folder(final.parent)
    except BaseException as fault:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(fault, OSError):
            raise write_error(fault, where) from fault
        raise


@contextmanager
def atomic_file(target: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file; its content takes the target's place when the block ends well.

    Args:
        target: the file to write or replace.
        mode: ``wb`` or ``w`` (UTF-8).

    Raises:
        CheckpointError: the file cannot be written, the disk is full, or the target is a device or a pipe, which a file
            must not take the place of; nothing has changed.
    """
    try:
        final = Path(os.path.realpath(target))
        if final.exists() and not final.is_file() and not final.is_dir():
            raise CheckpointError(f"{shown_path(target)} is not an ordinary file; give another path")
        with temporary_path(final) as temporary:
            with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
            sync_folder(final.parent)
    except OSError as fault:
        raise write_error(fault, shown_path(target)) from fault


def check_target(
    final: Path, where: str, replaceable: Replaceable = replaceable_checkpoint, overwrite: bool = True
) -> None:
    """Refuse to replace anything of the user's except a checkpoint. Raises CheckpointError."""
    if not os.path.lexists(final):
        return
    if not final.is_dir():
        raise CheckpointError(f"{where} is a file; give a folder to write to")
    if any(final.iterdir()):
        check_replaced(final, where, replaceable, overwrite)


def check_replaced(folder: Path, where: str, replaceable: Replaceable, overwrite: bool) -> None:
    """Refuse to remove a folder with files of the user's, or a checkpoint that nobody asked to replace."""
    seen = os.stat(folder)
    while not replaceable(folder):
        now = os.stat(folder)
        if not os.path.samestat(seen, now):  # another writer's folder took its place during the check
            seen = now
            continue
        names = foreign_files(folder)
        more = ", …" if len(names) > 3 else ""
        others = f" without other files ({', '.join(map(shown, names[:3]))}{more})" if names else ""
        raise CheckpointError(
            f"{where} is neither empty nor a checkpoint{others}, so it is not replaced; give another folder"
        )
    if not overwrite:
        raise CheckpointError(f"{where} holds a checkpoint already; replace it with --overwrite or give another folder")


def make_parents(folder: Path) -> list[Path]:
    """Make a folder and its missing parents. Returns those that were made, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing


def sync_tree(folder: Path) -> None:
    """fsync every file of a folder."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync_path(Path(root) / name)
        sync_folder(Path(root))


def sync_path(path: Path) -> None:
    """fsync a file by its name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """fsync a folder if the system can; some network file systems refuse."""
    with suppress(OSError):
        sync_path(folder)


def swap(
    new: Path, final: Path, where: str, replaceable: Replaceable = replaceable_checkpoint, overwrite: bool = True
) -> None:
    """Move a new folder to its final path. A folder that was there moves to the new one's old path, or to ``.old``.

    Raises CheckpointError, with nothing changed, if the existing folder may not be replaced.
    """
    check_target(final, where, replaceable, overwrite)
    while not final.exists() or not any(final.iterdir()):
        try:
            os.replace(new, final)  # on POSIX an empty folder is replaced in one step
        except OSError as fault:
            if fault.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            check_target(final, where, replaceable, overwrite)  # another writer's folder has appeared meanwhile
        else:
            return
    old = new
    if not exchange(new, final):
        old = new.with_suffix(".old")
        os.replace(final, old)
        try:
            os.replace(new, final)
        except BaseException:
            os.replace(old, final)
            raise
    try:
        check_replaced(old, where, replaceable, overwrite)  # a file may have been added since the first check
    except BaseException:
        if old is new:
            exchange(new, final)
        else:
            os.replace(final, new)
            os.replace(old, final)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that neither is ever missing; False where the system cannot."""
    call, flag = ("renameat2", 2) if sys.platform == "linux" else ("renameatx_np", 2)
    here = -100 if sys.platform == "linux" else -2
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), call)
    except (AttributeError, OSError, TypeError):
        return False
    return function(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(flag)) == 0


def write_error(fault: OSError, where: str) -> CheckpointError:
    """The one-line error for a failed write."""
    if isinstance(fault, NoRoom):
        free, needed = human_bytes(fault.free), human_bytes(fault.needed)
        return CheckpointError(f"{where}: {free} are free there, {needed} are needed; free some space or give another "
                               f"folder")
    if fault.errno in FULL_DISK:
        return CheckpointError(f"{where}: the disk is full, nothing was changed there; free some space")
    reason = fault.strerror or str(fault)[:200]
    return CheckpointError(
        f"{where} cannot be written ({reason}), nothing was changed there; check path and permissions"
    )


def append_line(path: Path, text: str) -> None:
    """Append a line to a file, whole or not at all. Raises CheckpointError."""
    rest = text.encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            try:
                while rest:  # a disk that fills up takes a part first, and fails at the next write
                    rest = rest[os.write(handle, rest) :]
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as fault:
        raise write_error(fault, shown_path(path)) from fault
