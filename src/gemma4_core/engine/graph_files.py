"""Files of what tinygrad traced, lowered and compiled: pickles with a digest in this user's cache folder.

A file holds what runs and no buffer's content. Pickles are code: they are read only from this user's own cache folder,
and where nobody else could have written them. Each begins with a digest: a pickle with a flipped bit may load and
crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pickle
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinygrad import Device
from tinygrad.dtype import AddrSpace
from tinygrad.helpers import ContextVar
from tinygrad.uop.ops import Ops, UOp

from gemma4_core.checkpoint.atomic import atomic_file
from gemma4_core.devices import machine
from gemma4_core.devices.machine import is_ours

MAX_FILES = 1024
"""Graphs stored at most; the least recently used are deleted first."""
STALE_SECONDS = 3600.0
"""Age at which a temporary file is taken to be left over from a killed process."""
DIGEST = hashlib.sha256().digest_size
SILENT = ("DEBUG", "PROFILE", "VIZ")
"""tinygrad's settings that change nothing about a graph."""


def is_global(uop: UOp) -> bool:
    """Whether this stands for memory of a device, and not for a kernel's registers or local memory."""
    return uop.op is Ops.BUFFER and uop.arg.addrspace is AddrSpace.GLOBAL


class UnknownBuffer(Exception):
    """A graph reads a buffer that has no name: nothing would tell whether it holds the same in another process."""


class Writer(pickle.Pickler):
    """Pickles a graph; buffers become names or places to make anew."""

    def __init__(self, file: Any, names: Mapping[UOp, str], written: set[UOp]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.names, self.written = names, written
        self.made: dict[UOp, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not UOp or not is_global(obj):
            return None
        if obj in self.names:
            return "named", self.names[obj]
        if obj not in self.written:
            raise UnknownBuffer(f"{obj.arg}")
        return "made", self.made.setdefault(obj, len(self.made)), obj.device, int(obj.shape[0]), obj.dtype


class Reader(pickle.Unpickler):
    """Unpickles what ``Writer`` wrote; names become buffers of the model at hand."""

    def __init__(self, file: Any, buffers: Mapping[str, UOp]) -> None:
        super().__init__(file)
        self.buffers = buffers
        self.made: dict[int, UOp] = {}

    def persistent_load(self, pid: Any) -> UOp:
        kind, name, *sizes = pid
        if kind == "named":
            return self.buffers[name]
        if name not in self.made:
            self.made[name] = UOp.new_buffer(*sizes)
        return self.made[name]


def wanted() -> bool:
    """Whether graphs may be stored and read: unless ``GEMMA4_KEEP_GRAPHS`` is 0."""
    return os.environ.get("GEMMA4_KEEP_GRAPHS", "").strip() != "0"


def stored(name: str) -> Path:
    """The file of this name in the folder of stored graphs, which is made."""
    folder = machine.cache_dir() / "graphs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{name}.graph"


def read(path: Path) -> memoryview | None:
    """What ``write`` put into a file. None where there is none that this user alone could write, where none is wanted,
    and where it is damaged, which deletes it."""
    if not wanted():
        return None
    try:
        with open(path, "rb") as file:
            if not is_ours(os.fstat(file.fileno())) or not is_ours(path.parent.lstat()):
                return None
            found = file.read()
    except Exception:  # no such file, or no folder for it
        return None
    content = memoryview(found)[DIGEST:]
    if digest(path, content) != found[:DIGEST]:
        forget(path)
        return None
    with contextlib.suppress(FileNotFoundError):  # another process made room
        os.utime(path)
    return content


def forget(path: Path) -> None:
    """Delete a file that cannot be used."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write(path: Path, content: memoryview) -> bool:
    """Store a pickle; whether that was possible and wanted."""
    if not wanted():
        return False
    try:
        with atomic_file(path) as file:
            os.chmod(file.name, 0o600)
            file.write(digest(path, content))
            file.write(content)
    except Exception:  # a full disk: everything works without being stored
        return False
    make_room(path.parent)
    return True


def digest(path: Path, content: memoryview) -> bytes:
    """The first bytes of a graph's file; they do not match a file that was damaged or renamed."""
    found = hashlib.sha256(path.name.encode())
    found.update(content)
    return found.digest()


def make_room(folder: Path) -> None:
    """Delete the least recently used graphs, and temporary files of killed processes."""
    times = {}
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may delete it at the same time
            times[file] = file.stat().st_mtime
    stored = sorted((file for file in times if file.suffix == ".graph"), key=lambda file: times[file])
    stale = [file for file in times if file.suffix == ".tmp" and times[file] < time.time() - STALE_SECONDS]
    for file in [*stored[:-MAX_FILES], *stale]:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def surroundings(device: str) -> tuple[object, ...]:
    """What a graph depends on besides the model: versions, the device, the processor, tinygrad's settings."""
    settings = {name: repr(value.value) for name, value in sorted(ContextVar._cache.items()) if name not in SILENT}
    opened = Device[device]
    return (importlib.metadata.version("tinygrad"), platform.python_version(), device,
            platform.machine(), machine.processor(),
            repr(opened.renderer.target), type(opened.renderer).__name__, settings)  # fmt: skip
