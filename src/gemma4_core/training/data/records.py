"""Rows of data files: read and checked one by one, before anything else is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.training.data.arrow_rows import arrow_format, arrow_rows
from gemma4_core.training.data.columns import Columns
from gemma4_core.training.data.dataset_folders import data_files
from gemma4_core.training.data.forms import KINDS, plain_line
from gemma4_core.training.data.json_rows import json_rows
from gemma4_core.training.data.stored_media import MediaStore

MEDIA_KEYS = ("path", "url", "source")
"""Keys of a content part that may hold the path of a medium, beside the part's own type."""
TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")
"""Endings of files that are not read."""


@dataclass(frozen=True)
class Record:
    """One row: an object with ``messages``, with ``prompt`` and ``completion``, or with ``text``; other tools' forms
    have been made into these (``forms.plain_line``)."""

    path: Path
    line: int
    """Counted from 1: lines of JSON Lines, objects of a JSON list, rows of a Parquet or Arrow file."""
    data: Mapping[str, Any]
    mapped: bool = False
    """Whether the user has told which columns count."""

    @property
    def where(self) -> str:
        """``train.jsonl:3``."""
        return f"{shown_path(self.path)}:{self.line}"

    @property
    def kind(self) -> str:
        """``messages``, ``prompt`` or ``text``."""
        return next(key for key in KINDS if key in self.data)


def read_records(
    path: Path | str, columns: Mapping[str, str] | None = None, split: str | None = None, preferred: str = "train"
) -> list[Record]:
    """Every row of a file, or of the files of a dataset folder's split; empty lines are passed over.

    Args:
        path: JSON Lines (also gzip), a JSON list, Parquet, Arrow, or a folder of such files.
        columns: names of columns by the keys that they stand for, such as ``{"messages": "chat"}``.
        split: of a folder; None is ``preferred`` where there are several.

    Raises:
        InputError: naming the file, the first row that is wrong and why, and how many more there are.
    """
    path, mapping, store = Path(path), Columns(columns), MediaStore()
    found: list[Record] = []
    faults: list[str] = []
    for file in data_files(path, split, preferred):
        where = shown_path(file)
        for number, row in rows(file, mapping, store):
            try:
                if isinstance(row, InputError):
                    raise row
                found.append(Record(file, number, checked(mapping.applied(row)), bool(mapping.names)))
            except InputError as fault:
                faults.append(f"{where}:{number}: {fault}")
    if found or faults:
        mapping.check(shown_path(path))
    refuse(faults)
    if not found:
        raise InputError(f"{shown_path(path)}: holds no example; give a row of data for each")
    return found


def rows(file: Path, columns: Columns, store: MediaStore) -> Iterator[tuple[int, Any]]:
    """The rows of a file by number; one that cannot be read is an InputError. Raises InputError for the whole file."""
    if file.suffix.lower() in TABLES:
        raise InputError(f"{shown_path(file)}: {file.suffix[1:].upper()} files are not read; save it as JSON Lines or "
                         f"Parquet")
    yield from json_rows(file) if arrow_format(file) is None else arrow_rows(file, columns, store)


def refuse(faults: Sequence[str]) -> None:
    """Raise InputError for faulty lines, if there are any: the first one, and the number of the others."""
    if faults:
        more = f"; and {len(faults) - 1} more faulty lines" if len(faults) > 1 else ""
        raise InputError(faults[0][:400] + more)


def checked(data: Any) -> Mapping[str, Any]:
    """The object of a line, of exactly one kind. Raises InputError."""
    if not isinstance(data, dict):
        raise InputError(f"expected an object such as {{\"messages\": […]}}, got {shown(data)}")
    line = plain_line(data)
    kind = next(key for key in KINDS if key in line)
    if kind != "messages":
        for key in KINDS[kind]:
            if not isinstance(line.get(key), str):
                raise InputError(f"{key} must be text, got {shown(line.get(key))}")
        if not line[KINDS[kind][-1]].strip():
            raise InputError(f"{KINDS[kind][-1]} is empty, there is nothing to learn")
    return line


def local(value: Any, folder: Path) -> Any:
    """A medium as a line names it: a relative path starts at the file's folder. Raises InputError."""
    if isinstance(value, Mapping) and "array" not in value:  # as datasets have it, without its bytes
        value = next((value[key] for key in MEDIA_KEYS if isinstance(value.get(key), str)), value)
    if not isinstance(value, str) or not value or value == "-":
        if value == "-" or value == "":
            raise InputError(f"a media path is {value!r}; give the path of a file")
        return value
    scheme = value.split(":", 1)[0].lower() if ":" in value else ""
    return value if scheme in ("data", "http", "https", "file") else str(folder / value)


def localised(messages: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Messages whose media paths start at a folder where they are relative."""

    def part(given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("type") == "text":
            return given
        keys = (*MEDIA_KEYS, str(given.get("type", "")).removeprefix("input_").removesuffix("_url"))
        return {
            key: local(value, folder) if key in keys
            else part({**value, "type": given.get("type")}) if isinstance(value, Mapping) else value
            for key, value in given.items()
        }

    return [
        {**message, "content": [part(item) for item in message["content"]]}
        if isinstance(message.get("content"), list) else dict(message)
        for message in messages
    ]
