"""JSON Lines: read and checked line by line, before anything else is done with them."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.json_lines import parsed
from gemma4_core.training.data.forms import KINDS, plain_line

LINE_LIMIT = 16 << 20
"""Bytes of a line: no example that fits a context is longer, unless media are written into it."""
MEDIA_KEYS = ("path", "url", "source")
"""Keys of a content part that may hold the path of a medium, beside the part's own type."""


@dataclass(frozen=True)
class Record:
    """One line: an object with ``messages``, with ``prompt`` and ``completion``, or with ``text``; other tools' forms
    have been made into these (``forms.plain_line``)."""

    path: Path
    line: int
    """Counted from 1."""
    data: Mapping[str, Any]

    @property
    def where(self) -> str:
        """``train.jsonl:3``."""
        return f"{shown_path(self.path)}:{self.line}"

    @property
    def kind(self) -> str:
        """``messages``, ``prompt`` or ``text``."""
        return next(key for key in KINDS if key in self.data)


def read_records(path: Path | str) -> list[Record]:
    """Every line of a JSON Lines file; empty lines are passed over.

    Raises InputError naming the file, the first line that is wrong and why, and how many more there are.
    """
    path = Path(path)
    found: list[Record] = []
    faults: list[str] = []
    for number, line in lines(path):
        try:
            found.append(Record(path, number, checked(parsed(line))))
        except InputError as fault:
            faults.append(f"{shown_path(path)}:{number}: {fault}")
    refuse(faults)
    if not found:
        raise InputError(f"{shown_path(path)}: holds no example; give a line of JSON for each")
    return found


def refuse(faults: Sequence[str]) -> None:
    """Raise InputError for faulty lines, if there are any: the first one, and the number of the others."""
    if faults:
        more = f"; and {len(faults) - 1} more faulty lines" if len(faults) > 1 else ""
        raise InputError(faults[0][:400] + more)


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, by number. Raises InputError for a file that cannot be read."""
    where = shown_path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{where}: is not a regular file; give a JSON Lines file")
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise InputError(f"{where}:{number}: the line is longer than {LINE_LIMIT >> 20} MiB")
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as fault:
        raise InputError(f"{where}: {fault.strerror or fault}; check the path") from fault
    except ValueError as fault:
        raise InputError(f"{where}: {fault}") from fault


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
    """A medium as a line names it: a relative path starts at the file's folder."""
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
