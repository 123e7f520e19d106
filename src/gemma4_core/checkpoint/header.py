"""The header of a safetensors file, read as untrusted input: the library reads and checks it, within limits, and if it
refuses a header we find out which tensor is at fault.

Layout (safetensors 0.5 format description): eight bytes with the length n of the header, n bytes of JSON, then the
data. Offsets count from the start of the data, and tensors fill it without holes.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from safetensors import SafetensorError, safe_open

from gemma4_core.config.files import ITEM_LIMIT, parse_object
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown, shown_path

HEADER_LIMIT = 16 << 20
"""Bytes: two thousand tensors take 0.3 MB."""
RANK_LIMIT = 8
ITEMSIZE = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes per element by the file format's name of a dtype."""


@dataclass(frozen=True)
class Entry:
    """A tensor as the header declares it. ``start`` and ``end`` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A validated header: tensors by name in file order, and the free text of ``__metadata__``."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises CheckpointError if it is absent, not a regular file, or not permitted."""
    try:
        # a pipe of this name would block
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{shown_path(path)} is not a regular file; a *.safetensors file is needed there")
        return open(path, "rb")
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise CheckpointError(f"{shown_path(path)}: {reason}; check the path and its permissions") from fault


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read and validate the header of an open file.

    Raises CheckpointError naming the file, and the tensor where there is one.
    """
    where, size = shown_path(path), os.fstat(file.fileno()).st_size
    again = "the file is damaged or incomplete, fetch it again"
    if size < 8:
        raise CheckpointError(f"{where} holds {size} bytes, which is not a safetensors file; {again}")
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, HEADER_LIMIT):
        beyond = f"more than the {size - 8} bytes left in it" if length > size - 8 else "more than any checkpoint needs"
        raise CheckpointError(f"{where} declares a header of {length} bytes, {beyond}; {again}")
    text = file.read(length)
    if not text.startswith(b"{"):
        begins = shown(text[:40].decode("latin-1"))
        raise CheckpointError(f"{where}: header must be a JSON object, not {begins}; {again}")
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) <= ITEM_LIMIT:
        found = library_header(path, 8 + length)
        # of several entries with one name the library takes the last; it also opens whatever file now has the path
        once = found is not None and text.count(b'"data_offsets"') == len(found.tensors)
        if found is not None and once and same_file(file, path):
            return found
    return explained_header(text, where, size)


def same_file(file: BinaryIO, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def library_header(path: Path, base: int) -> Header | None:
    """The header as the safetensors library reads and checks it; None for one that it refuses, or that it accepts but
    we do not.

    Args:
        path: the file; the length of its header is known to be sane.
        base: byte position of the data. Tensors fill it in order without holes, which the library has checked.
    """
    try:
        with safe_open(path, "numpy") as opened:
            position, tensors = base, {}
            for name in opened.offset_keys():
                part = opened.get_slice(name)
                dtype, shape = part.get_dtype(), tuple(part.get_shape())
                if dtype not in ITEMSIZE or len(shape) > RANK_LIMIT:
                    return None
                tensors[name] = Entry(dtype, shape, position, position + math.prod(shape) * ITEMSIZE[dtype])
                position = tensors[name].end
            return Header(tensors, dict(opened.metadata() or {}))
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError):
        return None


def explained_header(text: bytes, where: str, size: int) -> Header:
    """A header read entry by entry, for one that the library refuses without naming the tensor.

    Raises CheckpointError naming the file, and the tensor where there is one.
    """
    base = 8 + len(text)
    declared = parse_object(text, f"{where}: header of {len(text)} bytes", CheckpointError)
    metadata = declared.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: header entry __metadata__ must map text to text, not {shown(metadata)}")
    entries = {name: parse_entry(name, value, base, where) for name, value in declared.items()}
    check_layout(entries, base, size, where)
    return Header(entries, metadata)


def parse_entry(name: str, value: Any, base: int, where: str) -> Entry:
    """One tensor's declaration: known dtype, sane shape, and as many bytes as these require."""

    def fault(key: str, reason: str) -> CheckpointError:
        stands = shown(value.get(key)) if isinstance(value, dict) else shown(value)
        return CheckpointError(f"{where}: tensor {shown(name)} has {key} {stands}; {reason}")

    dtype, shape, offsets = (value.get(key) if isinstance(value, dict) else None for key in KEYS)
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise fault("dtype", f"it must be one of {', '.join(ITEMSIZE)}")
    if not whole_numbers(shape) or len(shape) > RANK_LIMIT:
        raise fault("shape", f"it must be a list of at most {RANK_LIMIT} non-negative integers")
    if not whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fault("data_offsets", "it must be two non-negative integers, the first not above the second")
    needed = math.prod(shape) * ITEMSIZE[dtype]
    if offsets[1] - offsets[0] != needed:
        raise fault("data_offsets", f"{dtype} of shape {shown(shape)} takes {needed} bytes")
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


KEYS = ("dtype", "shape", "data_offsets")


def whole_numbers(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of integers from 0 that a file position can hold."""
    limit = 1 << 62
    return isinstance(value, list) and all(type(item) is int and 0 <= item < limit for item in value)


def check_layout(entries: Mapping[str, Entry], base: int, size: int, where: str) -> None:
    """Tensors must fill the data from its start to the end of the file, without overlap or hole."""
    again = "the file is damaged or incomplete, fetch it again"
    position, before = base, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            how = "overlaps" if entry.start < position else "leaves a hole after"
            at = f"at data offset {entry.start - base}"
            raise CheckpointError(f"{where}: tensor {shown(name)} {at} {how} {before}; {again}")
        position, before = entry.end, shown(name)
        if position > size:
            place = f"ends at byte {position} of a file of {size} bytes"
            raise CheckpointError(f"{where}: tensor {shown(name)} {place}; {again}")
    if position != size:
        raise CheckpointError(f"{where} has {size - position} bytes after its last tensor; {again}")
