"""Input files and outputs of ``gemma4 batch``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cli_tools import Ran, gemma4

FLAGS = ("-m", "demo", "--device", "cpu", "--dtype", "float32", "--context", 256)


def batch(folder: Path, *more: object) -> Ran:
    """Run ``gemma4 batch`` on a folder's in.jsonl with the demo model."""
    return gemma4("batch", *FLAGS, "--input", folder / "in.jsonl", "--output", folder / "out.jsonl", *more)


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    """A JSON Lines file; text goes in as it is."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by id, each of which must be there once."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows), "an id is there twice"
    return found


def timeless(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows without the time of their making."""
    for row in rows.values():
        if row["response"] is not None:
            del row["response"]["body"]["created"]
    return rows


def question(id: str, **asked: Any) -> dict[str, Any]:
    """A line in OpenAI's form."""
    body = {"messages": [{"role": "user", "content": f"add {len(id)} and {sum(map(ord, id)) % 50}"}], **asked}
    return {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": {"max_tokens": 8, **body}}


def text_of(row: dict[str, Any]) -> str:
    """The first answer of a row."""
    return row["response"]["body"]["choices"][0]["message"]["content"]
