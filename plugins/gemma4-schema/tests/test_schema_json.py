"""JSON schemas: which texts an answer may be."""

from __future__ import annotations

from typing import Any

import pytest
from schema_tools import fits

NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
    "$ref": "#/$defs/node",
}
OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
    "required": ["b"],
}
TAGGED = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": kind}, **more}, "required": ["kind"]}
        for kind, more in (("x", {"n": {"type": "integer"}}), ("y", {}))
    ]
}
BASE = {
    "$defs": {"base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
    "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"name": {"enum": ["n"]}}}],
}

CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "integers": (
        {"type": "integer", "minimum": -5, "exclusiveMaximum": 12},
        [-5, 0, 9, 11],
        [-6, 12, 100, "-0", "01", "1.0"],
    ),
    "integers, one bound": ({"type": "integer", "minimum": 95}, [95, 100, 10**17], [94, 9, -95]),
    "no endless digits above a bound": ({"type": "integer", "minimum": 95}, ["9" * 18], ["9" * 19]),
    "no endless digits below a bound": ({"type": "integer", "maximum": 5}, ["-" + "9" * 18], ["-" + "9" * 19]),
    "no endless decimals": ({"type": "number", "minimum": 41}, ["9" * 18 + ".5"], ["9" * 19, "41." + "1" * 20]),
    "no endless digits": ({"type": "integer"}, ["9" * 18, "-" + "9" * 18], ["9" * 19]),
    "numbers": (
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
        ["0.001", 1, "1.5", "1.50"],
        [0, "0.0", "1.51", -1],
    ),
    "free numbers": ({"type": "number"}, [0, "-0.5", "1e9", "2.5E-3"], ["1.", ".5", "0." + "1" * 16, "1e999"]),
    "steps": ({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 30}, [0, 7, 28], [1, 35]),
    "steps without bounds": ({"type": "integer", "multipleOf": 5}, [0, 5, -10, 12345], [1, 12, -4]),
    "steps that llguidance counts": ({"type": "integer", "multipleOf": 7, "minimum": 0}, [700007], [700008]),
    "decimal steps": ({"type": "number", "multipleOf": 0.05}, ["0.05", "3", "-1.1", "7.95"], ["0.01", "1.123"]),
    "strings": (
        {"type": "string", "minLength": 1, "maxLength": 3},
        ['"é🙂x"', r'"\n"', r'"\"\\\u001f"'],
        ['""', '"abcd"', '"\n"', r'"\q"'],
    ),
    "patterns": (
        {"type": "string", "pattern": "^(a|b)+$|c", "maxLength": 5},
        ['"abab"', '"xcx"'],
        ['"ax"', '"ababab"'],
    ),
    "digits are ASCII": ({"type": "string", "pattern": r"^\d/\w$"}, ['"1/a"'], ['"٣/a"', '"1/é"']),
    "formats": ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-02-30"', '"0000-01-01"', '"x"']),
    "unknown formats describe": ({"type": "string", "format": "color", "maxLength": 3}, ['"red"'], ['"blue"']),
    "constants": ({"enum": ['ü"', 1, None, {"a": [1]}]}, ['"ü\\""', 1, "null", '{"a":[1]}'], ['"ü"', "2", '{"a":[]}']),
    "constants with a type": ({"type": "string", "enum": ["a", 1], "maxLength": 1}, ['"a"'], [1]),
    "types": ({"type": ["integer", "null"]}, [3, "null"], ['"3"', "true"]),
    "optional keys": (
        OBJECT,
        [{"b": True}, {"a": 1, "b": False}, {"a": 1, "b": True, "c": None}],
        [{}, {"a": 1}, '{"b":true,}', '{"b": true}'],
    ),
    "order is the schema's": (OBJECT, ['{"a":1,"b":true}'], ['{"b":true,"a":1}']),
    "no other keys": (OBJECT, [{"b": True}], [{"b": True, "d": 1}]),
    "all keys optional": (
        {"properties": {"a": {"type": "null"}, "b": {"type": "null"}}},
        [{}, {"a": None}, {"b": None}],
        ['{,"b":null}'],
    ),
    "further keys": (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
        [{}, {"a": None, "x": True, "ü": False}, {"x": True}],
        [{"a": True}, {"x": 1}],
    ),
    "keys by pattern": (
        {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
        [{}, {"x1": 1}],
        [{"y": 1}, {"x": True}],
    ),
    "numbers of keys": (
        {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 2},
        [{"a": None}, {"a": None, "b": None}],
        [{}, {"a": None, "b": None, "c": None}],
    ),
    "numbers of named keys": (
        {
            "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
            "minProperties": 1,
            "maxProperties": 2,
        },
        [{"a": None}, {"b": None, "c": None}],
        [{}, {"a": None, "b": None, "c": None}],
    ),
    "numbers of keys, some required": (
        {
            "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
            "required": ["c"],
            "maxProperties": 2,
        },
        [{"c": None}, {"c": None, "a": None}],
        [{"a": None, "b": None}, {"a": None}],
    ),
    "lists": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        [[True], [True, False]],
        [[], [True] * 3, "[true,]"],
    ),
    "tuples": (
        {"prefixItems": [{"type": "null"}, {"type": "integer"}], "items": {"type": "boolean"}, "maxItems": 3},
        [[None, 1], [None, 1, True]],
        [[None], [1, None], [None, 1, 2]],
    ),
    "tuples of old drafts": ({"items": [{"type": "null"}], "additionalItems": False}, [[None]], [[None, None]]),
    "no repetitions": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1},
        [["c", "a"], ["b"]],
        [[], ["a", "a"], ["a", "b", "c", "a"]],
    ),
    "anyOf": (
        {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "null"}, "maxItems": 1}]},
        ["null", [None]],
        [[1]],
    ),
    "oneOf": (TAGGED, [{"kind": "x", "n": 1}, {"kind": "y"}], [{"kind": "z"}, {"kind": "y", "n": 1}]),
    "allOf": (BASE, [{"id": 1, "name": "n"}, {"id": 2}], [{"name": "n"}, {"id": 1, "name": "m"}]),
    "beside anyOf": (
        {
            "type": "object",
            "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": None}, {"b": None}],
        [{}],
    ),
    "recursion": (NODE, ['{"next":null}', '{"next":{"next":null}}'], ["{}", '{"next":1}']),
    "a reference to the root": ({"properties": {"a": {"$ref": "#"}}}, [{}, {"a": {"a": {}}}], [{"a": 1}]),
    "escaped references": ({"$defs": {"a/b~ c": {"type": "null"}}, "$ref": "#/$defs/a~1b~0%20c"}, ["null"], ["1"]),
    "anchors": ({"$defs": {"x": {"$anchor": "here", "type": "null"}}, "$ref": "#here"}, ["null"], ["1"]),
    "anything": ({"type": "object"}, [{"a": [1, {"b": [None, "x", -2.5]}]}, {}], ["[]", "1", '{"a" :1}']),
    "draft 4": ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    "Gemini's types": (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING", "maxLength": 1}}},
        [{"a": "x"}],
        [{"a": 1}],
    ),
    "annotations": ({"type": "null", "title": "T", "description": "d", "default": 1, "x-any": {}}, ["null"], ["1"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_schema(case: str) -> None:
    schema, good, bad = CASES[case]
    assert [value for value in good if not fits(schema, value)] == []
    assert [value for value in bad if fits(schema, value)] == []


def test_recursion_ends() -> None:
    inner = '{"next":null}'
    for _ in range(8):
        inner = f'{{"next":{inner}}}'
    assert fits(NODE, inner) and not fits(NODE, '{"next":' * 40 + "null" + "}" * 40)
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}}
    deep = '{"kids":[' * 5 + "]}" * 5
    assert fits(tree, deep) and not fits(tree, '{"kids":[' * 8 + "]}" * 8)
