"""Objects of JSON Lines, plain or compressed with gzip, and of JSON files that hold one list."""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown_path
from gemma4_core.json_lines import MARK, numbered_lines, parsed

LINE_LIMIT = 16 << 20
"""Bytes of a line: no example that fits a context is longer, unless media are written into it."""
LIST_LIMIT = 512 << 20
"""Bytes of a file that is one list, which is read whole."""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
"""A whole string, a bracket, or the quote of a string that does not end."""
BETWEEN = re.compile(rb"[ \t\r\n]*+(,?)[ \t\r\n]*+")


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The objects of a file, by line, or by place where the file is one list; one that is not valid JSON is the
    InputError that says why.

    Raises InputError naming the file where it cannot be read.
    """
    where = shown_path(path)
    try:
        with opened(path) as file:
            first = file.read(1024).removeprefix(MARK).lstrip()
            file.seek(0)
            yield from list_rows(file, where) if first.startswith(b"[") else line_rows(file, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as fault:
        raise InputError(f"{where}: cannot be unpacked: {fault}; the file is damaged or cut off") from fault
    except OSError as fault:
        raise InputError(f"{where}: {fault.strerror or fault}; check the path{hub_hint(path)}") from fault
    except ValueError as fault:
        raise InputError(f"{where}: {fault}") from fault


def opened(path: Path) -> IO[bytes]:
    """A data file, unpacked where it is compressed. Raises InputError and OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{shown_path(path)}: is not a regular file; give a JSON Lines file")
    file = open(path, "rb")  # noqa: SIM115
    head = file.read(4)
    file.seek(0)
    if head == ZSTD:
        file.close()
        raise InputError(f"{shown_path(path)}: is compressed with zstd; unpack it first: zstd -d {path.name}")
    return gzip.GzipFile(fileobj=file) if head.startswith(GZIP) else file  # type: ignore[return-value]


def hub_hint(path: Path) -> str:
    """What to do about a missing file that looks like the name of a dataset on the Hugging Face hub."""
    text = str(path)
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", text) or os.path.lexists(path.parent):
        return ""
    return f", or fetch it: hf download --repo-type dataset {text} --local-dir FOLDER"


def line_rows(file: IO[bytes], where: str) -> Iterator[tuple[int, Any]]:
    """Lines that are not empty, by number. Raises InputError for a line that is too long."""
    for number, line in numbered_lines(file, LINE_LIMIT):
        if line is None:
            raise InputError(f"{where}:{number}: the line is longer than {LINE_LIMIT >> 20} MiB")
        yield number, read(line)


def read(text: bytes) -> Any:
    """JSON, or the InputError that says what is wrong with it."""
    try:
        return parsed(text)
    except InputError as fault:
        return fault


def list_rows(file: IO[bytes], where: str) -> Iterator[tuple[int, Any]]:
    """The objects of one list, counted from 1. Raises InputError for what is no list of objects."""
    data = file.read(LIST_LIMIT + 1)
    if len(data) > LIST_LIMIT:
        raise InputError(f"{where}: is one list of more than {LIST_LIMIT >> 20} MiB; write it as JSON Lines, an object "
                         f"on each line")
    at, number = data.index(b"[") + 1, 0
    while True:
        gap = BETWEEN.match(data, at)
        assert gap is not None
        at, byte = gap.end(), data[gap.end() : gap.end() + 1]
        if byte == b"]" and not gap[1]:
            if data[at + 1 :].strip():
                raise InputError(f"{where}:{line_of(data, at + 1)}: not valid JSON: text behind the list")
            return
        if bool(gap[1]) != bool(number):
            raise InputError(f"{where}:{line_of(data, at)}: not valid JSON: a comma is missing or too many")
        number += 1
        if byte != b"{":
            what = "the list does not end" if not byte else "expected an object such as {\"messages\": […]}"
            raise InputError(f"{where}:{line_of(data, at)}: {what}")
        end = object_end(data, at, f"{where}:{line_of(data, at)}" if number == 1 else f"{where}: object {number}")
        yield number, read(data[at:end])
        at = end


def object_end(data: bytes, start: int, where: str) -> int:
    """Where the object ends that begins at ``start``. Raises InputError where it does not, or is too long."""
    depth = 0
    for token in TOKEN.finditer(data, start):
        sign = token[0]
        depth += (sign in b"[{") - (sign in b"]}") if len(sign) == 1 else 0
        if sign == b'"':
            break
        if token.end() - start > LINE_LIMIT:
            raise InputError(f"{where}: the object is longer than {LINE_LIMIT >> 20} MiB")
        if not depth:
            return token.end()
    raise InputError(f"{where}: not valid JSON: a string or an object does not end")


def line_of(data: bytes, at: int) -> int:
    """The line of a place in a file."""
    return data.count(b"\n", 0, at) + 1
