"""The CSV of the matrix: complete at any moment, with the same columns in every row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from payload import into

from gemma4_core.cli.tables import comma_separated
from gemma4_core.errors import InputError

KEY = ("size", "format", "device", "beam", "beam_width", "prompt_tokens", "max_new_tokens")
"""Columns that identify a row; a row that says ``ok`` is not measured again by ``--resume``."""
COLUMNS = (
    *KEY, "status", "error", "generated_tokens", "tokens_sha256", "tokens_per_second", "milliseconds_per_token",
    "prompt_seconds", "prompt_tokens_per_second", "load_seconds", "warmup_seconds", "row_seconds", "peak_memory_bytes",
    "peak_rss_bytes", "bytes_per_token", "effective_gbps", "read_gbps_before", "read_gbps_after", "percent_of_limit",
    "operations", "machine", "revision", "finished", "folder",
)  # fmt: skip
LIMIT = 64 << 20

Row = dict[str, str]


class Table:
    """Rows by the columns that identify them, and the file that holds them."""

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self.path = path
        self.rows = {key_of(row): row for row in rows}

    @classmethod
    def open(cls, path: Path, resume: bool) -> Table:
        """The table of a file, written immediately to make sure that it can be. Raises InputError, and changes nothing,
        for a file with content that is not to be resumed, or with other columns."""
        rows = read(path)
        if rows and not resume:
            raise InputError(f"--out {path} already holds results; add --resume to continue, or give another file")
        table = cls(path, rows or [])
        if rows is None:
            table.write()
        return table

    def done(self, key: Mapping[str, Any]) -> bool:
        """Whether this row was measured."""
        row = self.rows.get(key_of(key))
        return row is not None and row["status"] == "ok"

    def put(self, row: Mapping[str, Any]) -> None:
        """Add or replace a row and write the file."""
        self.rows[key_of(row)] = {name: shown(row.get(name)) for name in COLUMNS}
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        with into(self.path) as file:
            file.write(comma_separated(list(self.rows.values()), COLUMNS))


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that identify a row, as text."""
    return tuple(shown(row.get(name)) for name in KEY)


def shown(value: Any) -> str:
    """A value as written to the file: empty for None, floats with six digits, no line ends."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def read(path: Path, named: str = "--out ") -> list[Row] | None:
    """Rows of a CSV, None where there is no file or an empty one. Raises InputError for one with other columns."""
    where = f"{named}{path}"
    other = f"{where} is not a table of this matrix"
    try:
        if not path.exists():
            return None
        if path.stat().st_size > LIMIT:
            raise InputError(f"{other} (more than {LIMIT >> 20} MB); nothing was changed, give another file")
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise InputError(f"{where} cannot be read: {fault.strerror}; give another file") from fault
    except UnicodeDecodeError:
        raise InputError(f"{other} (it is not text); nothing was changed, give another file") from None
    if not text.strip():
        return None
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as fault:
        raise InputError(f"{other} ({fault}); nothing was changed, give another file") from None
    if tuple(header) != COLUMNS:
        raise InputError(f"{where} has other columns ({difference(header)}), so --resume cannot continue it; "
                         "nothing was changed, give another file")
    wrong = next((number for number, line in enumerate(lines, 2) if len(line) != len(COLUMNS)), None)
    if wrong is not None:
        raise InputError(f"{where}: row {wrong} is incomplete, so --resume cannot continue it; nothing was "
                         "changed, fix or remove the row")
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines]


def difference(header: list[str]) -> str:
    """How a header differs from ours, in a few words."""
    lacking = [name for name in COLUMNS if name not in header]
    strange = [name for name in header if name not in COLUMNS]
    said = [f"without {few(lacking)}"] if lacking else []
    said += [f"with {few(strange)}"] if strange else []
    return ", ".join(said) or "in another order"


def few(names: list[str]) -> str:
    """The first names of a list."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name[:40]) for name in names[:3]) + more
