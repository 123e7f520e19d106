"""Tool declarations: the forms that people have them in, made the one that chat templates read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.text.messages import plain_data

SCHEMA_KEYS = ("parameters", "inputSchema", "input_schema", "parametersJsonSchema", "parameters_json_schema")
"""Where a declaration has its parameters: OpenAI's and Gemini's, MCP's, Anthropic's."""
LIST_KEYS = ("tools", "functionDeclarations", "function_declarations")
"""Where an object has several declarations: a request or an answer of MCP, Gemini's."""
NAME = re.compile(r"[^\s{}\[\](),:\"'<>|=][^\s{}\[\](),\"'<>|=]*")
"""A name that the model's call syntax can hold."""


def tool_declarations(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as ``{"type": "function", "function": {"name", "description", "parameters"}}``; None stays None.

    Args:
        tools: a list of declarations in OpenAI's form, without its ``function``, in MCP's (``inputSchema``),
            Anthropic's (``input_schema``) or Gemini's (``functionDeclarations``); one declaration; or an object that
            has the list as ``tools``.

    Raises:
        InputError: a declaration without a name or with a wrong part, or two of one name; names it by its index.
    """
    if tools is None:
        return None
    found: list[dict[str, Any]] = []
    names: set[str] = set()
    for where, tool in _each(tools, "tools"):
        declaration = _declaration(plain_data(tool), where)
        name = declaration["function"]["name"]
        if name in names:
            raise InputError(f"{where}: a tool named {shown(name, 60)} is declared already; give each its own name")
        names.add(name)
        found.append(declaration)
    return found


def _each(tools: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Declarations with their places, lists inside objects unfolded."""
    if isinstance(tools, Mapping):
        key = next((key for key in LIST_KEYS if isinstance(tools.get(key), list | tuple)), None)
        if key is None:
            yield where if where != "tools" else "tools[0]", tools
        else:
            yield from _each(tools[key], where if where == "tools" == key else f"{where}.{key}")
        return
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise InputError(f"{where} must be a list of tool declarations (JSON objects), not {shown(tools, 60)}")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InputError(
                f'{where}[{index}] must be an object such as {{"type": "function", "function": {{"name": …}}}}, '
                f"not {shown(tool, 60)}"
            )
        yield from _each(tool, f"{where}[{index}]")


def _declaration(tool: dict[str, Any], where: str) -> dict[str, Any]:
    function = tool.get("function")
    if isinstance(function, dict):
        where, rest = f"{where}.function", {key: value for key, value in tool.items() if key != "function"}
    elif function is None and "name" in tool:
        # what clients keep beside these is not for the model
        function = {key: tool[key] for key in ("name", "description", "response", *SCHEMA_KEYS) if key in tool}
        rest = {}
    else:
        raise InputError(
            f"{where} lacks function: a tool is {{\"type\": \"function\", \"function\": {{\"name\": …, "
            f"\"description\": …, \"parameters\": …}}}}, not {shown(tool, 100)}"
        )
    # order and parts that are None stay, as transformers keeps them; a description would be written as None
    key = next((key for key in SCHEMA_KEYS if function.get(key) is not None), "parameters")
    function = {
        "parameters" if part == key else part: value
        for part, value in function.items()
        if (part == key or part not in SCHEMA_KEYS) and (part != "description" or value is not None)
    }
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{where} has the name {shown(name, 60)}; a name is text without spaces, brackets and quotes")
    if not isinstance(function.get("description", ""), str):
        raise InputError(f"{where} ({name}): description must be text, not {shown(function['description'], 60)}")
    schema = function.setdefault("parameters", {})
    if schema is not None and not isinstance(schema, dict):
        raise InputError(f"{where} ({name}): parameters must be a JSON schema (an object), not {shown(schema, 60)}")
    if schema and "type" not in schema:
        # released templates close the brace of parameters after their type
        function["parameters"] = {"type": "object", **schema}
    return {"type": "function", **rest, "function": function}
