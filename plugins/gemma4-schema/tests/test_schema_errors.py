"""Specifications that cannot be served: one sentence each, and soon."""

from __future__ import annotations

from typing import Any

import pytest
from schema_tools import constraint, tools_of

from gemma4_core import InputError

DEEP: Any = {"type": "null"}
for _ in range(80):
    DEEP = {"type": "array", "items": DEEP}
TOOL = {"type": "object", "properties": {"a": {"type": "integer"}}}

BAD: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "exactly one of json_schema"),
    "unknown": ({"grammar": "x"}, '"grammar" is unknown'),
    "two": ({"regex": "a", "lark": "b"}, "exactly one"),
    "option of another": ({"regex": "a", "parallel_tool_calls": False}, "goes with tools"),
    "no boolean": ({"tools": "auto", "parallel_tool_calls": 1}, "parallel_tool_calls 1"),
    "budget": ({"regex": "a", "thinking_budget": 0}, "thinking_budget 0"),
    "object": ({"json_object": False}, "must be true"),
    "no schema": ({"json_schema": 5}, "json_schema 5"),
    "no JSON": ({"json_schema": {"const": float("nan")}}, "json_schema"),
    "large": ({"json_schema": {"enum": ["x" * 70_000]}}, "more than 65536"),
    "deep": ({"json_schema": DEEP}, "inside each other"),
    "type": ({"json_schema": {"type": "strng"}}, 'json_schema.type: "strng"'),
    "place": ({"json_schema": {"properties": {"a": {"items": {"type": 7}}}}}, "properties.a.items.type"),
    "odd names": ({"json_schema": {"properties": {"a\nb" + "x" * 600: {"type": 7}}}}, "xxx.type: 7 is none"),
    "keyword": ({"json_schema": {"not": {"type": "null"}}}, "not cannot be kept"),
    "if": ({"json_schema": {"if": {}, "then": {}}}, "if cannot be kept"),
    "bound": ({"json_schema": {"minimum": "1"}}, 'minimum: "1"'),
    "huge bound": ({"json_schema": {"type": "number", "maximum": 1e300}}, "maximum"),
    "length": ({"json_schema": {"maxLength": -1}}, "maxLength: -1"),
    "step": ({"json_schema": {"multipleOf": 0}}, "multipleOf"),
    "odd step": ({"json_schema": {"type": "number", "multipleOf": 0.3}}, "multipleOf 0.3"),
    "remote": ({"json_schema": {"$ref": "https://example.com/s.json"}}, "nothing is fetched"),
    "file": ({"json_schema": {"$ref": "file:///etc/passwd"}}, "nothing is fetched"),
    "dangling": ({"json_schema": {"$ref": "#/$defs/a"}}, "names nothing"),
    "circle": ({"json_schema": {"$ref": "#"}}, "no value of finite size"),
    "circle of two": (
        {"json_schema": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
        "no value of finite size",
    ),
    "circle of allOf": (
        {"json_schema": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}], "type": "object"}}, "$ref": "#/$defs/a"}},
        "leads back to itself",
    ),
    "without end": (
        {"json_schema": {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
        "no value of finite size",
    ),
    "contradiction": ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "no value of finite size"),
    "no whole number": (
        {"json_schema": {"type": "integer", "minimum": 0.1, "maximum": 0.9}},
        "no value of finite size",
    ),
    "empty enum": ({"json_schema": {"enum": []}}, "no value of finite size"),
    "required and closed": (
        {"json_schema": {"type": "object", "required": ["a"], "additionalProperties": False}},
        "no value of finite size",
    ),
    "oneOf": ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "options 1 and 2 of oneOf"),
    "unique": ({"json_schema": {"type": "array", "uniqueItems": True, "items": {"type": "string"}}}, "uniqueItems"),
    "few keys": ({"json_schema": {"type": "object", "minProperties": 3}}, "minProperties 3"),
    "pattern": ({"json_schema": {"pattern": "(a"}}, 'pattern "(a" cannot be used'),
    "look-around": ({"json_schema": {"pattern": "(?=a)b"}}, "look-around"),
    "empty pattern": ({"json_schema": {"pattern": "^ab$", "maxLength": 1}}, "matches no text"),
    "regex": ({"regex": "(a"}, "constraint regex"),
    "no text": ({"regex": 5}, "regex 5: must be text"),
    "large regex": ({"regex": "a" * 70_000}, "more than 65536"),
    "lark": ({"lark": "start: x"}, "constraint lark"),
    "lark without end": ({"lark": 'start: x\nx: x "a"'}, "allows no text"),
    "tools": ({"tools": "any"}, 'tools "any"'),
    "no tools": ({"tools": "required"}, "no tools were offered"),
    "unknown tool": ({"tools": {"name": "other"}, "offered": tools_of(TOOL)}, 'no tool named "other"'),
    "tool's keys": ({"tools": {"name": "tool.0", "x": 1}, "offered": tools_of(TOOL)}, "must be"),
    "tool's schema": ({"tools": "auto", "offered": tools_of(TOOL, {"type": "object", "not": {}})}, "tool.1"),
    "tool of no object": ({"tools": "required", "offered": tools_of({"type": "string"})}, "tool.0"),
    "many tools": ({"tools": "auto", "offered": tools_of(*[TOOL] * 129)}, "more than 128"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_specification_is_one_sentence(case: str) -> None:
    specification, said = BAD[case]
    given = {key: value for key, value in specification.items() if key != "offered"}
    with pytest.raises(InputError) as caught:
        constraint(given, tools=specification.get("offered", ()))
    text = str(caught.value)
    assert said in text and "\n" not in text and len(text) < 500 and text.startswith("constraint")


CATASTROPHES = {
    "nested repetitions": {"regex": "((a{1,100}){1,100}){1,100}b"},
    "a long tail": {"regex": "(a|b)*a(a|b){4000}"},
    "repetitions of a pattern": {"json_schema": {"type": "string", "pattern": "^(.*a){200}$"}},
    "a pattern that others run away with": {
        "json_schema": {
            "type": "object",
            "patternProperties": {"^(a+)+$": {}},
            "properties": {"a" * 40 + "b": {"type": "null"}},
        }
    },
    "wide": {
        "json_schema": {
            "anyOf": [
                {"type": "object", "properties": {f"k{i}_{j}": {"type": "integer"} for j in range(20)}}
                for i in range(60)
            ]
        }
    },
    "doubling references": {
        "json_schema": {
            "$defs": {
                f"d{i}": {
                    "type": "object",
                    "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}},
                }
                for i in range(60)
            }
            | {"d60": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    },
    "combinations": {
        "json_schema": {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(20)]}
    },
    "long strings": {"json_schema": {"type": "string", "minLength": 50_000, "maxLength": 60_000}},
    "large lists": {"json_schema": {"type": "array", "items": {"type": "null"}, "maxItems": 10**9}},
    "a grammar of choices": {"lark": "start: " + " ".join(f'("a{i}" | "b{i}")' for i in range(3000))},
}


@pytest.mark.parametrize("case", CATASTROPHES)
def test_what_could_run_away_is_built_or_refused_soon(case: str) -> None:
    try:
        form = constraint(CATASTROPHES[case])
        for _ in range(3):
            mask = form.mask()
            form.advance(int(mask.nonzero()[0][0]) * 32 + int(mask[mask.nonzero()[0][0]]).bit_length() - 1)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
