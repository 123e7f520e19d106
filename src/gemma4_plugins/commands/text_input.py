"""Text from the command line, files and standard input, checked: not too long, and UTF-8."""

from __future__ import annotations

import sys
from typing import Any

from gemma4_core.errors import InputError

TEXT_LIMIT = 64 << 20
"""Bytes of a prompt or of tool declarations: more than any context holds."""


def read_standard_input() -> str:
    """All of stdin as text. Raises InputError where it is too long or not UTF-8."""
    data = sys.stdin.buffer.read(TEXT_LIMIT + 1) if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    return decoded(data, "standard input")


def read_text_file(option: str, path: str) -> str:
    """A file's text. Raises InputError, naming option and file, where it cannot be read, is too long or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(TEXT_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path}: {getattr(error, 'strerror', None) or error}") from error
    return decoded(data, f"{option} {path}")


def decoded(data: bytes, where: str) -> str:
    """Bytes as UTF-8 text without a byte order mark. Raises InputError."""
    if len(data) > TEXT_LIMIT:
        raise InputError(f"{where} is longer than {TEXT_LIMIT >> 20} MiB, which fits no context")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {error.start})") from error


def checked_text(option: str, text: str) -> str:
    """Text of the command line. Raises InputError where it holds bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{option} {text[:80]!r}: not UTF-8 text (character {error.start})") from error
    return text


def read_schema(value: str | None) -> dict[str, Any] | None:
    """The specification of ``--schema``: a file with a JSON schema, or the schema itself. Raises InputError."""
    import json

    if value is None:
        return None
    written = value.lstrip().startswith("{")
    where = f"--schema {value[:80]}"
    try:
        found = json.loads(checked_text("--schema", value) if written else read_text_file("--schema", value))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: must be a JSON schema, an object such as {{\"type\": \"object\"}}")
    return {"json_schema": found}


def read_tools(path: str) -> list[dict[str, Any]]:
    """Tool declarations from a JSON file, in any form of ``tool_declarations``. Raises InputError naming the file."""
    import json

    from gemma4_core.text.tools import tool_declarations

    try:
        return tool_declarations(json.loads(read_text_file("--tools", path))) or []
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith("--tools ") else f"--tools {path}: {said}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--tools {path}: not a JSON file: {error}") from error
