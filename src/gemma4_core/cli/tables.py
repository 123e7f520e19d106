"""Reports as tables: columns for a terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

GAP = "  "
"""Space between two columns."""
INDENT = "    "
"""Indentation of a row's further lines."""
LEAST = 24
"""Least width of the last column; in narrower terminals rows are stacked."""


def terminal_width() -> int | None:
    """Characters in a line of the terminal that stdout is; None for files and pipes, where lines are not wrapped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines of aligned columns, wrapped at words to the terminal's width.

    Args:
        head: the columns' titles.
        rows: their cells; the last column may be of any length.
        right: indices of columns that are aligned to the right.
    """
    limit = terminal_width()
    last = len(head) - 1
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(last)]
    before = sum(widths) + len(GAP) * last
    if limit is not None and limit - before < min(LEAST, max(len(row[last]) for row in rows)):
        return [line for row in rows for line in _stacked(row, limit)]
    lines = []
    for row in (head, *rows):
        cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in range(last)]
        lines += wrapped(GAP.join([*cells, row[last]]).rstrip(), limit, " " * before)
    return lines


def _stacked(row: Sequence[str], limit: int) -> list[str]:
    """A row on several lines: as many cells as fit on the first, the others indented below."""
    lines = [""]
    for cell in row:
        joined = f"{lines[-1]}{GAP}{cell}" if lines[-1].strip() else lines[-1] + cell
        if len(joined) <= limit:
            lines[-1] = joined
        else:
            lines += wrapped(INDENT + cell, limit, INDENT)
    return lines


def wrapped(line: str, limit: int | None, indent: str | None = None) -> list[str]:
    """A line cut at words where it is longer than ``limit``. Words and paths that are too long stay whole.

    ``indent`` begins the further lines; by default they begin where the line's value does: below the text after the
    first gap of two spaces, else two characters further in than the line.
    """
    if limit is None or len(line) <= limit:
        return [line]
    if indent is None:
        label = re.match(r"\s*\S+(?: \S+)?  +", line)
        blank = len(line) - len(line.lstrip())
        indent = " " * (len(label[0]) if label and len(label[0]) <= limit - LEAST else blank + 2)
    lead = line[: len(indent)] if len(indent) < limit else ""
    body = textwrap.wrap(line[len(lead) :], max(limit - len(indent), 1), break_long_words=False,
                         break_on_hyphens=False, drop_whitespace=True)
    return [lead + body[0], *(indent + part for part in body[1:])] if body else [line]


def fitted(lines: Sequence[str]) -> list[str]:
    """The lines of a report, wrapped at words where stdout is a narrower terminal."""
    limit = terminal_width()
    return [part for line in lines for part in wrapped(line, limit)]


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
    """CSV with a header line; ``names`` default to the keys of the first row. Unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def number(value: float | None, digits: int = 1) -> str:
    """A number with ``digits`` decimals; ``-`` where it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"
