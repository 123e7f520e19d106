"""Values, paths and sizes as messages show them: on one line, of bounded length."""

from __future__ import annotations

import json
import math
import sys
from typing import Any, TypeGuard

UNITS = ("B", "kB", "MB", "GB", "TB")


def human_bytes(count: float) -> str:
    """``10.2 GB``: decimal units, three digits."""
    for unit in UNITS:
        if count < 999.5 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.{1 if count >= 9.995 else 2}f} {unit}"


def human_count(count: int) -> str:
    """``5.12 B``, ``31 M``: parameters."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def three_digits(value: float) -> str:
    """A number to three significant digits, never with an exponent: ``0.0123``, ``12.3``, ``1530``."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:.{max(0, min(decimals, 12))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number that fits a float; true and false are none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # an int is compared exactly, whatever its size


def shown(value: object, width: int = 80) -> str:
    """A value as JSON would write it, on one line and cut to ``width``."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = repr(type(value).__name__)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= width else text[: width - 1] + "…"


def shown_path(path: object, width: int = 160) -> str:
    """A path on one line; the middle of a long one is left out, so that its file name stays."""
    text = str(path)
    text = text.encode("unicode_escape", "surrogateescape").decode() if not text.isprintable() else text
    return text if len(text) <= width else f"{text[: width // 3]}…{text[-(width - width // 3 - 1) :]}"
