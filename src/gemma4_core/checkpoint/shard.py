"""One open safetensors file: positions from its header, bytes read or mapped when asked for."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from gemma4_core.checkpoint.convert import STORED, float32_values
from gemma4_core.checkpoint.header import Entry, Header, open_regular, read_header
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown_path

# the name is in Python's mmap from 3.12 on; Linux alone needs it
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if sys.platform == "linux" else 0
Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of a file: while they are unchanged, so is its header."""


def stamp_of(found: os.stat_result) -> Stamp:
    """What distinguishes a file from one that replaced it."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Shard:
    """One open safetensors file. ``known`` is its header if that has been read, with the file's stamp at that time.

    Raises CheckpointError where the header is not sound.
    """

    def __init__(self, path: Path, known: tuple[Header, Stamp] | None = None) -> None:
        self.path = path
        self.file = open_regular(path)
        try:
            self.stamp = stamp_of(os.fstat(self.file.fileno()))
            same = known is not None and known[1] == self.stamp
            self.header = known[0] if known is not None and same else read_header(self.file, path)
        except BaseException:
            self.file.close()
            raise
        self._mapping: mmap.mmap | None = None
        self.readers: weakref.WeakSet[StoredRows] = weakref.WeakSet()
        """Readers that may still be asked for rows."""

    def close(self) -> None:
        """Close the file. It stays mapped for readers that are still in use."""
        if self.readers and not self.file.closed:
            with suppress(CheckpointError):
                _ = self.mapping
        self.file.close()

    @property
    def mapping(self) -> mmap.mmap:
        """The file in memory, copy on write: a tensor on it may be updated in place, the file never is.

        It lives as long as arrays or tensors refer to it, also after ``close``.
        """
        if self._mapping is None:
            # without NORESERVE Linux refuses a private mapping larger than memory, though no page is written
            flags = mmap.MAP_PRIVATE | NORESERVE
            try:
                self._mapping = mmap.mmap(self.file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
            except (OSError, ValueError) as fault:
                raise CheckpointError(f"{shown_path(self.path)} cannot be mapped into memory: {fault}") from fault
        return self._mapping

    def read(self, start: int, into: np.ndarray) -> None:
        """Fill an array from a file position, without leaving file pages in this process's memory. Threads may read
        concurrently. Raises CheckpointError where the file ends early."""
        view, done = into.data.cast("B"), 0
        while done < len(view):
            try:
                count = os.preadv(self.file.fileno(), [view[done:]], start + done)
            except OSError as fault:
                raise CheckpointError(f"{shown_path(self.path)} cannot be read: {fault.strerror}") from fault
            if not count:
                raise CheckpointError(f"{shown_path(self.path)} became shorter while it was read; fetch it again")
            done += count


class StoredRows:
    """Rows of a stored float matrix as fp32, by indices ``[...]`` of its first axis.

    A run of rows is read from the file and leaves nothing in this process's memory or address space; others come from
    the mapped file, or from ``held``, the whole matrix in memory.
    """

    def __init__(self, shard: Shard, entry: Entry, held: np.ndarray | None = None) -> None:
        self.shard, self.entry, self.held = shard, entry, held
        shard.readers.add(self)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        table = self.held
        if table is None and self.in_file and self._is_run(ids):
            return float32_values(self.run(int(ids[0]), len(ids)), self.entry.dtype)
        return float32_values((self._mapped() if table is None else table)[ids], self.entry.dtype)

    @property
    def in_file(self) -> bool:
        """Whether ``run`` can still read the file."""
        return not self.shard.file.closed

    def run(self, first: int, count: int) -> np.ndarray:
        """The stored bits of ``count`` rows from ``first`` on."""
        rows, *inner = self.entry.shape
        bits = np.empty((count, *inner), STORED[self.entry.dtype])
        self.shard.read(self.entry.start + first * (self.entry.nbytes // rows), bits)
        return bits

    def _is_run(self, ids: np.ndarray) -> bool:
        if ids.ndim != 1 or len(ids) < 2 or ids[0] < 0 or ids[-1] >= self.entry.shape[0]:
            return False
        return bool((np.diff(ids) == 1).all())

    def _mapped(self) -> np.ndarray:
        bits = memoryview(self.shard.mapping)[self.entry.start : self.entry.end]
        return np.frombuffer(bits.toreadonly(), STORED[self.entry.dtype]).reshape(self.entry.shape)
