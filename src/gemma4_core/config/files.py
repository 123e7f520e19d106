"""Small text files of a checkpoint folder, read with limits: they come from outside and are not trusted."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

from gemma4_core.contracts import SideFile
from gemma4_core.errors import ConfigError, Gemma4Error
from gemma4_core.formatting import shown, shown_path

CONFIG_LIMIT = 4 << 20
"""Bytes of config.json and the other settings of a model: real ones have a few thousand."""
JSON_LIMIT = 16 << 20
"""Bytes of any other JSON file: an index of a hundred thousand tensors has 10 MB, a tokenizer_config.json 1 MB."""
ITEM_LIMIT = 1 << 20
"""Values in a JSON file: parsing so many takes half a second and 150 MB. 30 000 tensors of a header have 270 000."""


def read_bytes(path: Path | SideFile, limit: int = JSON_LIMIT, error: type[Gemma4Error] = ConfigError) -> bytes:
    """The whole of a regular file of at most ``limit`` bytes. Raises ``error`` naming the file."""
    where = shown_path(path)
    if isinstance(path, SideFile):
        if len(path.data) > limit:
            raise error(f"{where} is larger than {limit >> 20} MiB, which no such part of a checkpoint is")
        return path.data
    try:
        found = os.stat(path)
        # a pipe or device of this name would block or never end
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{where} is not a regular file")
        if found.st_size <= limit:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
            if len(data) <= limit:
                return data
    except OSError as fault:
        absent = isinstance(fault, FileNotFoundError) and os.path.islink(path)
        reason = "a link to a file that is absent" if absent else fault.strerror or fault
        raise error(f"{where}: {reason}; check the path and its permissions") from fault
    except ValueError as fault:
        raise error(f"{where}: {fault}") from fault
    raise error(f"{where} is larger than {limit >> 20} MiB, which no such file of a checkpoint is; fetch it again")


def read_json(path: Path | SideFile, limit: int = JSON_LIMIT, error: type[Gemma4Error] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file. Raises ``error`` naming the file, and the line and column or the key of a fault."""
    return parse_object(read_bytes(path, limit, error), shown_path(path), error)


def parse_object(data: bytes, where: str, error: type[Gemma4Error] = ConfigError) -> dict[str, Any]:
    """The object that JSON text says, with time and memory bounded.

    Args:
        data: UTF-8, perhaps with a byte order mark.
        where: what errors call the text.
        error: class of the errors.

    Raises:
        error: no JSON, no object, too many values, or a name twice, a number too long, text that is no Unicode.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise error(f"{where} names {shown(twice)} twice; remove one, or fetch the file again")
        return found

    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > ITEM_LIMIT:
        raise error(f"{where} has more than a million values, which no such file of a checkpoint has; fetch it again")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
        if b"\\ud" in data or b"\\uD" in data:  # perhaps one half of a pair, which is not text
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not UTF-8 text (byte {fault.start}); fetch the file again") from fault
    except UnicodeEncodeError as fault:
        near = shown(fault.object[max(0, fault.start - 60) : fault.end], 160)
        raise error(f"{where} has half of a surrogate pair, which is not text, at the end of {near}") from fault
    except json.JSONDecodeError as fault:
        place = f"line {fault.lineno} column {fault.colno}"
        raise error(f"{where} is not valid JSON: {fault.msg} at {place}; fetch the file again") from fault
    except RecursionError as fault:
        raise error(f"{where} is nested too deeply to be a file of a checkpoint") from fault
    except ValueError as fault:
        raise error(f"{where} is not valid JSON: {long_number(data) or shown(str(fault))}") from fault
    if not isinstance(value, dict):
        raise error(f"{where} must hold a JSON object, not {shown(value)}")
    return value


def long_number(data: bytes) -> str | None:
    """Which number has more digits than Python reads, by the key before it; None where there is none."""
    found = re.search(rb"-?[0-9]{%d,}" % (sys.get_int_max_str_digits() + 1), data)
    if found is None:
        return None
    keys = re.findall(rb'"([^"]{0,200})"\s*:', data[max(0, found.start() - 4096) : found.start()])
    key = shown(keys[-1].decode("utf-8", "replace")) if keys else "a value"
    return f"{key} is {found[0][:12].decode()}…, a number of {len(found[0])} digits"
