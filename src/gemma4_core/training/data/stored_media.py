"""Media that stand inside of data files, kept out of memory where they are many."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass, field
from typing import IO

from gemma4_core.errors import InputError
from gemma4_core.processing.media_cache import digest

IN_MEMORY = 256 << 20
"""Bytes of media that stay in memory; more of them go into a temporary file."""


@dataclass(frozen=True, eq=False)
class StoredMedium:
    """A medium that is read again each time it is used; takes the place of a file object."""

    name: str
    """For messages: where it stands, and the name of the file that it once was."""
    digest: str
    """Equal for equal content."""
    start: int = field(repr=False)
    size: int = field(repr=False)
    store: MediaStore = field(repr=False)

    def read(self, size: int = -1) -> bytes:
        """Its content, or the beginning. Raises InputError where the temporary file cannot be read."""
        return self.store.read(self.start, self.size if size < 0 else min(size, self.size))


class MediaStore:
    """The media of a data file. The temporary file has no name and goes away with the last medium."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._lock = threading.Lock()
        self._end = 0

    def add(self, data: bytes, name: str) -> StoredMedium:
        """Store a medium. Raises InputError where the disk is full."""
        try:
            with self._lock:
                self._file.seek(self._end)
                self._file.write(data)
                medium = StoredMedium(name, digest(data).hex(), self._end, len(data), self)
                self._end += len(data)
        except OSError as fault:
            raise InputError(f"{name}: media of the data are kept in {tempfile.gettempdir()}, which cannot be written: "
                             f"{fault.strerror or fault}; set TMPDIR to a folder with more room") from fault
        return medium

    def read(self, start: int, size: int) -> bytes:
        """A part of what was stored. Raises InputError."""
        try:
            with self._lock:
                self._file.seek(start)
                return self._file.read(size)
        except OSError as fault:
            where = tempfile.gettempdir()
            raise InputError(f"a medium in {where} cannot be read: {fault.strerror or fault}") from fault
