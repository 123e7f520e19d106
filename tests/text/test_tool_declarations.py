"""Tool declarations in the forms that people have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemma4_core.errors import InputError
from gemma4_core.text.template import ChatTemplate
from gemma4_core.text.tools import tool_declarations
from gemma4_plugins.commands.text_input import read_tools

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "City"}}, "required": ["city"]}
FLAT = {"name": "get", "description": "Get weather"}
DECLARED = [{"type": "function", "function": {**FLAT, "parameters": SCHEMA}}]
FORMS = {
    "openai": DECLARED,
    "openai, without type": [{"function": {**FLAT, "parameters": SCHEMA}}],
    "two schemas": [{**FLAT, "parameters": None, "inputSchema": SCHEMA}],
    "openai, responses": [{"type": "function", **FLAT, "parameters": SCHEMA, "strict": True}],
    "without function": [{**FLAT, "parameters": SCHEMA}],
    "mcp": [{**FLAT, "title": "T", "inputSchema": SCHEMA, "outputSchema": {}, "annotations": {"readOnlyHint": True}}],
    "mcp, the answer to tools/list": {"tools": [{**FLAT, "inputSchema": SCHEMA}], "nextCursor": None},
    "anthropic": [{**FLAT, "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
    "gemini": [{"functionDeclarations": [{**FLAT, "parameters": SCHEMA}]}],
    "a request": {"model": "m", "tools": DECLARED},
    "a single one": {**FLAT, "parameters": SCHEMA},
    "a tuple": tuple(DECLARED),
}


@pytest.mark.parametrize("form", FORMS)
def test_flat_tools_and_other_forms_are_read(form: str):
    assert tool_declarations(FORMS[form])[0]["function"] == DECLARED[0]["function"]
    assert tool_declarations(FORMS[form])[0]["type"] == "function"


def test_no_tools_stay_none():
    assert tool_declarations(None) is None and tool_declarations([]) == []


@pytest.mark.parametrize("name", ["launch", "tiny"])
@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {}}])
def test_a_tool_without_parameters_has_none_in_the_prompt(name: str, parameters: dict[str, Any]):
    here = Path(__file__).parents[2]
    file = {"launch": "tests/data/template/launch.jinja", "tiny": "src/gemma4_core/data/tokenizer/chat_template.jinja"}
    text = (here / file[name]).read_text()
    prompt = ChatTemplate({"default": text}, here, {"bos_token": "<bos>"}).render(
        [{"role": "user", "content": "Hi"}], [{"name": "f", "description": None, **parameters}])
    assert '<|tool>declaration:f{description:<|"|><|"|>}<tool|>' in prompt


def test_parameters_without_a_type_are_an_object():
    """The launch template would leave their brace open."""
    [tool] = tool_declarations([{"name": "f", "parameters": {"properties": {}}}])
    assert tool["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([{"type": "function"}], "tools[0] lacks function: a tool is"),
        ({"type": "function"}, "tools[0] lacks function"),
        ([*DECLARED, {}], "tools[1] lacks function"),
        ([{"type": "function", "function": "f"}], "tools[0] lacks function"),
        ([{"functionDeclarations": [{"description": "x"}]}], "tools[0].functionDeclarations[0] lacks function"),
        ("get", 'tools must be a list of tool declarations (JSON objects), not "get"'),
        (5, "tools must be a list"),
        ([print], "tools[0] must be an object such as"),
        ([["f"]], "tools[0] must be an object such as"),
        ([{"function": {}}], "tools[0].function has the name null"),
        ([{"name": ""}], 'tools[0] has the name ""; a name is text without spaces'),
        ([{"name": "get weather"}], 'has the name "get weather"'),
        ([{"name": "f(x)"}], "has the name"),
        ([{"name": "f{"}], "has the name"),
        ([{"name": 5}], "has the name 5"),
        ([{"name": "f", "description": ["x"]}], "tools[0] (f): description must be text"),
        ([{"name": "f", "parameters": "x"}], "tools[0] (f): parameters must be a JSON schema (an object), not \"x\""),
        ([{"name": "f", "input_schema": []}], "parameters must be a JSON schema"),
        ([{"name": "f"}, {"name": "g"}, {"name": "f"}], 'tools[2]: a tool named "f" is declared already'),
    ],
)
def test_tools_that_are_wrong_are_told_by_their_place(tools: Any, says: str, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        tool_declarations(tools)
    message = str(caught.value)
    assert says in message and "\n" not in message and len(message) < 500 and "--raw" not in message
    if tools != [print]:
        path = tmp_path / "tools.json"
        path.write_text("\ufeff" + json.dumps(tools))
        with pytest.raises(InputError) as caught:
            read_tools(str(path))
        assert str(caught.value) == f"--tools {path}: {message}"


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_tools_may_begin_with_a_byte_order_mark(form: str, tmp_path: Path):
    path = tmp_path / "tools.json"
    path.write_text("\ufeff" + json.dumps(FORMS[form]), encoding="utf-8")
    assert read_tools(str(path))[0]["function"] == DECLARED[0]["function"]


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"\xff", "is not UTF-8 text"), (b"{", "not a JSON file"), (b"[" * 100_000, "not a JSON file"), (None, "No such")],
)
def test_a_file_of_tools_that_cannot_be_read_is_named(data: bytes | None, says: str, tmp_path: Path):
    path = tmp_path / "tools.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=says) as caught:
        read_tools(str(path))
    assert str(caught.value).startswith(f"--tools {path}") and "\n" not in str(caught.value)
