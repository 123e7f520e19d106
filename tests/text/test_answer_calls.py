"""Tool calls as models write them, rightly and wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from gemma4_core.text.calls import MAX_DEPTH, ToolCall, parse_call


def parse(text: str) -> ToolCall | None:
    return parse_call(text.split('<|"|>'))


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ("", {}),
        (" \n", {}),
        ("a:1", {"a": 1}),
        ("a:-1.5e3,b:0.25,c:+7,d:.5,e:5.,f:007", {"a": -1500.0, "b": 0.25, "c": 7, "d": 0.5, "e": 5.0, "f": 7}),
        ("a:true,b:false,c:null", {"a": True, "b": False, "c": None}),
        ("a:True,b:False,c:None", {"a": True, "b": False, "c": None}),
        ('a:<|"|>Oslo<|"|>', {"a": "Oslo"}),
        ('a:<|"|><|"|>', {"a": ""}),
        ('a:<|"|>He said "hi", {x: [1]} and \'that\'<|"|>,b:2', {"a": "He said \"hi\", {x: [1]} and 'that'", "b": 2}),
        ('a:<|"|>line\nbreak \\n \0<|"|>', {"a": "line\nbreak \\n \0"}),
        ('a:[<|"|>x<|"|>,[1,[]],{b:{c:{}}}]', {"a": ["x", [1, []], {"b": {"c": {}}}]}),
        ('<|"|>quoted key<|"|>:1', {"quoted key": 1}),
        ("two words:1, é-1.x :2", {"two words": 1, "é-1.x": 2}),
        ("a:1,", {"a": 1}),
        (' a : [ 1 , 2 ] , b : { c : <|"|>d<|"|> } ', {"a": [1, 2], "b": {"c": "d"}}),
        ("a:1,a:2", {"a": 2}),
        # what models fall back to: JSON and Python spelling, also inside containers
        ('"a":"x","b":["y","z"],"c":{"d":"e"}', {"a": "x", "b": ["y", "z"], "c": {"d": "e"}}),
        ("'a':'x','b':['it\\'s']", {"a": "x", "b": ["it's"]}),
        ('a:"say \\"hi\\" {}, \\u00e9\\n"', {"a": 'say "hi" {}, é\n'}),
        ("a:'say \"hi\"',b:\"it's\"", {"a": 'say "hi"', "b": "it's"}),
        ("a:'line\nbreak'", {"a": "line\nbreak"}),
        ('a:"line\nbreak"', {"a": "line\nbreak"}),
        ('a:"py\\x41"', {"a": "pyA"}),
        ("a:'\\d+ \\x4 \\ud83e\\udd99'", {"a": "\\d+ \\x4 \U0001f999"}),
        ('a:[\'x\',"y",<|"|>z<|"|>]', {"a": ["x", "y", "z"]}),
    ],
)
def test_arguments(inside: str, arguments: dict[str, Any]):
    call = parse(f"call:f{{{inside}}}")
    assert call == ToolCall("f", arguments)
    assert [type(value) for value in call.arguments.values()] == [type(value) for value in arguments.values()]


@pytest.mark.parametrize("name", ["get_weather", "a.b-c/d:e", "名前", "f2"])
def test_names(name: str):
    assert parse(f" call:{name}{{}}\n").name == name


@pytest.mark.parametrize(
    "text",
    [
        "", "call", "call:", "call:{}", "call:f", "call:f{", "call:f}", "call:f{}}", "call:f{} and more", "f{}",
        "Call:f{}", "call:f g{}", "call:f()", "call:f({})", "call:f{a}", "call:f{a:}", "call:f{:1}", "call:f{a:1 b:2}",
        "call:f{a:1;b:2}", "call:f{a:Oslo}", "call:f{a:1.2.3}", "call:f{a:1e999}", "call:f{a:nan}", "call:f{a:0x10}",
        "call:f{a:--1}", "call:f{a:[1}", "call:f{a:[1,2}]", "call:f{a:{b:1]}", "call:f{,a:1}", "call:f{a:1,,b:2}",
        'call:f{a:"open}', "call:f{a:'open}", 'call:f{a:<|"|>open}', 'call:f{a:<|"|>x<|"|><|"|>y<|"|>}',
        'call:f{a:<|"|>x<|"|>y}', 'call:f{a:x<|"|>y<|"|>}', 'call:f{a:"x<|"|>y<|"|>"}', '<|"|>call:f{}<|"|>',
        'call:f{a:"\\ud800"}', 'call:f{a:"\\U00110000"}', "call:f{a:" + "9" * 5000 + "}",
        "call:f{a:" + "[" * 1000 + "]" * 1000 + "}", "call:f{a:" + "{a:" * 1000 + "1" + "}" * 1000 + "}",
        "call:f{a:٣}", "call:f{a:1_000}",
    ],
)  # fmt: skip
def test_what_is_no_call(text: str):
    assert parse(text) is None


def test_nesting_has_a_limit():
    def nested(depth: int) -> ToolCall | None:
        return parse("call:f{a:" + "[" * depth + "]" * depth + "}")

    assert nested(MAX_DEPTH - 1) is not None and nested(MAX_DEPTH + 1) is None


def test_long_calls_take_linear_time():
    text = "call:f{a:" + '"' * 1 + "x{" * 200_000
    assert parse(text) is None
    assert parse("call:f{a:[" + "1," * 100_000 + "1]}").arguments["a"][-1] == 1
    assert parse('call:f{a:<|"|>' + '{"x": [' * 100_000 + '<|"|>}').arguments["a"].startswith('{"x"')


def test_json_of_a_call():
    assert ToolCall("f", {"a": ["é", None]}).as_json() == '{"name": "f", "arguments": {"a": ["é", null]}}'
