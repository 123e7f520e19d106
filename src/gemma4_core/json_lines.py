"""Lines of JSON that come from outside, read with time and memory bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown

DEEPEST = 64
"""Objects and lists inside each other; messages need seven, arguments of tools some more."""
VALUES = 1 << 20
"""Values of a line at most, about: brackets and commas in it."""
MARK = b"\xef\xbb\xbf"
"""What some editors write before UTF-8."""


def numbered_lines(file: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not empty, by number; None for one of more than ``limit`` bytes, whose rest is passed over when
    the next one is asked for. Raises OSError."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit:
            yield number, None
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
        elif line.strip():
            yield number, line.removeprefix(MARK) if number == 1 else line


def parsed(line: bytes) -> Any:
    """A line as JSON, nested at most ``DEEPEST`` deep. Raises InputError."""
    nested = line.count(b"[") + line.count(b"{")
    if nested + line.count(b",") > VALUES:
        raise InputError(f"the line holds more than {VALUES} values")
    try:
        data = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as fault:
        raise InputError(f"not UTF-8 text (byte {fault.start})") from fault
    except json.JSONDecodeError as fault:
        raise InputError(f"not valid JSON: {fault.msg} at column {fault.colno}") from fault
    except RecursionError as fault:
        raise too_deep() from fault
    except ValueError as fault:
        raise InputError(f"not valid JSON: {shown(str(fault))}") from fault
    level = [data] if nested > DEEPEST else []
    for _ in range(DEEPEST):
        level = [item for held in level if isinstance(held, dict | list)
                 for item in (held.values() if isinstance(held, dict) else held)]
    if level:
        raise too_deep()
    return data


def check_text(data: Any, line: bytes) -> None:
    """Raise InputError where what was read of a line holds half of a surrogate pair, which is not text."""
    if b"\\ud" in line or b"\\uD" in line:
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError("half of a surrogate pair, which is not text") from None


def too_deep() -> InputError:
    """The error for a line that is nested without end."""
    return InputError(f"objects and lists are nested more than {DEEPEST} deep")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
