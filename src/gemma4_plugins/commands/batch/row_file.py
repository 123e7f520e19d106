"""A file of finished rows: written by one process at a time, each row once, and taken up again after a kill."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown, shown_path

BEGINNING = b'{"id": "batch_req_'
"""How every row begins."""
SYNC_SECONDS = 1.0
"""Rows older than this are on disk."""
ROW_LIMIT = 1 << 30
"""Bytes of a row."""


class RowFile:
    """``lock``, then ``held`` for the ids that are done, then ``begin``, ``write`` and ``close``.

    Nothing in the file changes before ``begin``. Another process that locks it is refused meanwhile.
    """

    def __init__(self, path: Path, option: str, overwrite: bool, optional: bool = False) -> None:
        """``option`` is what errors call the file by; an ``optional`` file is removed where it stays empty."""
        self.optional = optional
        self.path, self.where, self.overwrite = path, f"{option} {shown_path(path)}", overwrite
        self.begun = False
        self._handle: int | None = None
        self._size = 0
        """Where the next row is written."""
        self._ending = b""
        """What completes the last row."""
        self._synced, self._dirty = 0.0, False

    # ------------------------------------------------------------------------------------------- before anything runs

    def lock(self) -> None:
        """Open the file, which may be new, for this process alone. Raises InputError."""
        try:
            while self._handle is None:
                self._open()
        except OSError as fault:
            raise InputError(f"{self.where}: {fault.strerror or fault}; check the path") from fault
        except ValueError as fault:
            raise InputError(f"{self.where}: {fault}") from fault

    def _open(self) -> None:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputError(f"{self.where}: is not a regular file")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                if fault.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise InputError(f"{self.where}: another process writes to it; wait for that one") from fault
                # a file system without locks
            with suppress(FileNotFoundError):  # a process that failed may have removed what it had made
                if os.path.samestat(os.stat(self.path), os.fstat(handle)):
                    self._handle, handle = handle, -1
        finally:
            if handle >= 0:
                os.close(handle)

    def held(self, known: Container[str]) -> set[str]:
        """The ids that the file holds; none where it is to be overwritten. A last row that was cut is not counted.

        Raises InputError for a file that holds anything else than rows of known ids, each once.
        """
        found: set[str] = set()
        if self.overwrite:
            return found
        with open(self.path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(ROW_LIMIT), b""), 1):
                if not line.endswith(b"\n"):
                    self._take_torn(line, number, known, found)
                    break
                found.add(self._id(line, number, known, found))
                self._size += len(line)
        return found

    def _take_torn(self, line: bytes, number: int, known: Container[str], found: set[str]) -> None:
        """A last line without an end: a whole row that lacks its end is kept, a part of one is cut off later."""
        if line.endswith(b"}"):
            with suppress(ValueError, RecursionError):
                json.loads(line)
                found.add(self._id(line, number, known, found))
                self._size += len(line)
                self._ending = b"\n"
                return
        beginning = line.rstrip(b"\0")  # a machine that lost power leaves zeros
        if not beginning.startswith(BEGINNING[: len(beginning)]):
            raise self._strange(number)

    def _id(self, line: bytes, number: int, known: Container[str], found: set[str]) -> str:
        try:
            row = json.loads(line)
            own = row["custom_id"]
            if not isinstance(own, str) or not {"response", "error"} <= set(row):
                raise TypeError
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise self._strange(number) from None
        if own in found:
            raise InputError(f"{self.where}: line {number} has the id {shown(own, 60)} once more; remove one of the "
                             "rows")
        if own not in known:
            raise InputError(f"{self.where}: line {number} has the id {shown(own, 60)}, which the input does not have; "
                             "give another file, or --overwrite")
        return own

    def _strange(self, number: int) -> InputError:
        return InputError(f"{self.where}: line {number} is no row of a batch; give another file, or --overwrite")

    # ------------------------------------------------------------------------------------------- rows

    def begin(self) -> None:
        """Cut off what is not a whole row. Raises OSError."""
        assert self._handle is not None
        os.ftruncate(self._handle, self._size)
        os.lseek(self._handle, self._size, os.SEEK_SET)
        self.begun = True
        if self._ending:
            self._append(self._ending)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row, whole or not at all. Raises OSError."""
        self._append(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def _append(self, data: bytes) -> None:
        assert self._handle is not None
        rest = data
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError as fault:
            fault.filename = str(self.path)
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise
        self._size += len(data)
        self._dirty = True
        self.sync(SYNC_SECONDS)

    def sync(self, older: float = 0.0) -> None:
        """Bring what was written to the disk, where the last time is longer ago than so many seconds."""
        if self._dirty and self._handle is not None and time.monotonic() - self._synced >= older:
            os.fsync(self._handle)
            self._synced, self._dirty = time.monotonic(), False

    def close(self) -> None:
        """Bring everything to the disk and let others write."""
        if self._handle is None:
            return
        try:
            self.sync()
            if (self.optional or not self.begun) and not os.fstat(self._handle).st_size:
                with suppress(OSError):
                    os.unlink(self.path)
        finally:
            os.close(self._handle)
            self._handle = None


class Outputs:
    """The output and the errors file. The latter is made with its first row."""

    def __init__(self, output: Path, errors: Path | None, overwrite: bool) -> None:
        self.output = RowFile(output, "--output", overwrite)
        self.errors = RowFile(beside(output) if errors is None else errors, "--errors", overwrite, optional=True)
        self.done: set[str] = set()
        self.failed: set[str] = set()
        """Ids in the errors file."""
        self.reason: str | None = None
        """Why the first row of this run failed."""

    def lock(self, known: Container[str]) -> None:
        """Lock both and read which ids are done. Raises InputError."""
        self.output.lock()
        self.done = self.output.held(known)
        if os.path.lexists(self.errors.path):
            self.errors.lock()
            self.failed = self.errors.held(known)
        if both := self.done & self.failed:
            raise InputError(f"{self.errors.where}: the id {shown(min(both), 60)} is in the output too; remove one of "
                             "the rows")

    def begin(self) -> None:
        """Get ready to write. Raises OSError."""
        for file in (self.output, self.errors):
            if file is self.output or os.path.lexists(file.path):
                file.begin()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to the file that it belongs to. Raises OSError, and InputError where another process has made the
        errors file meanwhile."""
        if row["error"] is None:
            self.output.write(row)
            return
        if not self.errors.begun:
            self.errors.lock()
            if self.errors.held(()):
                raise InputError(f"{self.errors.where}: another process has written to it; run again")
            self.errors.begin()
        self.errors.write(row)
        self.failed.add(row["custom_id"])
        self.reason = self.reason or row["error"]["message"]

    def sync(self) -> None:
        """Bring rows to the disk that are older than a second."""
        self.output.sync(SYNC_SECONDS)
        self.errors.sync(SYNC_SECONDS)

    def close(self) -> None:
        """Finish both files."""
        try:
            self.output.close()
        finally:
            self.errors.close()


def beside(output: Path) -> Path:
    """The errors file of an output: ``out.errors.jsonl`` for ``out.jsonl``."""
    return output.with_name(f"{output.stem}.errors{output.suffix or '.jsonl'}")
