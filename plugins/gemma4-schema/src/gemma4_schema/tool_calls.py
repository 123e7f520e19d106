"""Grammars of tool calls as the model writes them: ``<|tool_call>call:NAME{key:value}<tool_call|>``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemma4_core import InputError
from gemma4_core.formatting import shown
from gemma4_schema.reading import SchemaReader, checked_size
from gemma4_schema.regexes import literal
from gemma4_schema.schemas import written
from gemma4_schema.spelling import Call
from gemma4_schema.writing import GrammarWriter, repetition

MARKS = ("<|tool_call>", "<tool_call|>", '<|"|>')
MOST_TOOLS = 128
MOST_CALLS = 32
"""Calls of one answer."""


def call_grammar(
    tools: Sequence[Mapping[str, Any]], choice: Any, parallel: bool, special: Mapping[str, int]
) -> str:
    """The grammar of one call, or of several.

    Args:
        tools: declarations of the tools offered.
        choice: ``"required"``, ``"auto"``, or ``{"name": …}`` for one call of this tool.
        parallel: whether several calls may follow each other.
        special: the tokenizer's special tokens.

    Raises:
        InputError: no tools, an unknown one, or one whose parameters cannot be kept.
    """
    missing = [mark for mark in MARKS if mark not in special]
    if missing:
        raise InputError(f"constraint tools: the tokenizer has no token {missing[0]}, which calls are written with")
    if not tools:
        raise InputError("constraint tools: no tools were offered; give their declarations as tools")
    if len(tools) > MOST_TOOLS:
        raise InputError(f"constraint tools: {len(tools)} tools, more than {MOST_TOOLS}")
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    names = list(functions)
    if isinstance(choice, Mapping):
        name = choice.get("name")
        if set(choice) != {"name"} or not isinstance(name, str):
            raise InputError(f"constraint tools {shown(dict(choice), 80)}: must be \"required\", \"auto\" or "
                             "{\"name\": …}")
        if name not in functions:
            raise InputError(f"constraint tools: no tool named {shown(name, 60)} was offered; there are "
                             f"{shown(', '.join(names), 200)}")
        names, parallel = [name], False
    opening, closing, mark = (special[mark] for mark in MARKS)
    writer = GrammarWriter(Call(mark))
    calls = [_call(functions[name], writer) for name in names]
    call = writer.rule(f"<[{opening}]> ({' | '.join(calls)}) <[{closing}]>")
    return writer.grammar(repetition(call, 1, MOST_CALLS if parallel else 1))


def _call(function: Mapping[str, Any], writer: GrammarWriter) -> str:
    name, schema = function["name"], function.get("parameters") or {"type": "object", "properties": {}}
    where = f"tools {shown(name, 60)}"
    if schema.get("type", "object") not in ("object", "OBJECT"):
        raise InputError(f"constraint {where}: its parameters must be of type object")
    if set(schema) <= {"type", "description"}:
        schema = {**schema, "type": "object", "additionalProperties": False}
    checked_size(schema, where)
    reader = SchemaReader({**schema, "type": schema.get("type", "object")}, where)
    return writer.rule(f"{literal(f'call:{name}')} {written(reader, writer, where)}")
