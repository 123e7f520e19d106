"""Small text files of a checkpoint folder, read with limits: they come from outside and are not trusted."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from gemma4_core.errors import ConfigError, Gemma4Error

JSON_LIMIT = 64 << 20
"""Bytes: an index of a hundred thousand tensors is smaller."""


def shown(value: object, width: int = 80) -> str:
    """A value as JSON would write it, on one line and cut to ``width``."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = repr(type(value).__name__)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= width else text[: width - 1] + "…"


def shown_path(path: Path | str, width: int = 160) -> str:
    """A path on one line; the middle of a long one is left out, so that its file name stays."""
    text = str(path)
    text = text.encode("unicode_escape", "surrogateescape").decode() if not text.isprintable() else text
    return text if len(text) <= width else f"{text[: width // 3]}…{text[-(width - width // 3 - 1) :]}"


def read_bytes(path: Path, limit: int = JSON_LIMIT, error: type[Gemma4Error] = ConfigError) -> bytes:
    """The whole of a regular file of at most ``limit`` bytes. Raises ``error`` naming the file."""
    where = shown_path(path)
    try:
        # a pipe or device of this name would block or never end
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error(f"{where} is not a regular file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as fault:
        raise error(f"{where}: {fault.strerror or fault}; check the path and its permissions") from fault
    except ValueError as fault:
        raise error(f"{where}: {fault}") from fault
    if len(data) > limit:
        raise error(f"{where} is larger than {limit >> 20} MiB, which no such file of a checkpoint is")
    return data


def read_json(path: Path, limit: int = JSON_LIMIT, error: type[Gemma4Error] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file. Raises ``error`` naming the file, and the line and column of a fault."""
    where = shown_path(path)
    try:
        value = json.loads(read_bytes(path, limit, error).decode("utf-8-sig"))
    except UnicodeDecodeError as fault:
        raise error(f"{where} is not UTF-8 text (byte {fault.start}); fetch the file again") from fault
    except json.JSONDecodeError as fault:
        place = f"line {fault.lineno} column {fault.colno}"
        raise error(f"{where} is not valid JSON: {fault.msg} at {place}; fetch the file again") from fault
    except RecursionError as fault:
        raise error(f"{where} is nested too deeply to be a file of a checkpoint") from fault
    except ValueError as fault:
        raise error(f"{where} is not valid JSON: {shown(str(fault))}") from fault
    if not isinstance(value, dict):
        raise error(f"{where} must hold a JSON object, not {shown(value)}")
    return value
