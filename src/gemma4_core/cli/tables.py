"""Reports as tables: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> str:
    """A Markdown table, columns padded to a width; the last ``right`` of them stand to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    left = len(head) - right
    pad = [str.ljust] * left + [str.rjust] * right
    lines = [" | ".join(pad[i](row[i], widths[i]) for i in range(len(head))) for row in (head, *rows)]
    rule = " | ".join("-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    lines.insert(1, rule)
    return "".join(f"| {line} |\n" for line in lines)


def comma_separated(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    """CSV with a line of names, without ``names`` those of the first row; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals, ``-`` where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"
