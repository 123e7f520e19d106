"""Tool calls in the model's own spelling: what may be written, and that our reader reads it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from gemma4_schema.tool_calls import call_grammar
from schema_tools import allowed, constraint, drawn, pieces_of, text_of, tokenizer, tools_of

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "unit"],
}
ODD = {
    "type": "object",
    "properties": {
        "größe": {"type": "number", "minimum": -1, "maximum": 1},
        "a b": {"type": "null"},
        'q"<|"|>': {"const": 'x<|"|>,}{"\n'},
        "true": {"type": "boolean"},
        "in": {
            "type": "object",
            "properties": {
                "a:b": {"type": "array", "items": {"type": "object", "properties": {}}, "maxItems": 2, "minItems": 1}
            },
            "required": ["a:b"],
        },
    },
    "required": ["größe", "a b", 'q"<|"|>', "true", "in"],
}
SPECIAL = {"<|tool_call>": 1, "<tool_call|>": 2, '<|"|>': 3}


def calls(ids: list[int], tools: Any = None) -> list[Any]:
    """The calls that our reader finds, and nothing else."""
    pieces = pieces_of(ids, tools=tools)
    assert all(piece.kind == "tool_call" for piece in pieces), pieces
    return [piece.tool_call for piece in pieces]


def test_calls_parse_and_fit() -> None:
    tools, rng = tools_of(WEATHER, ODD), np.random.default_rng(1)
    several = 0
    for _ in range(12):
        made = calls(drawn(constraint({"tools": "required"}, tools=tools), rng), tools)
        several += len(made) > 1
        assert made
        for call in made:
            arguments = call["arguments"]
            if call["name"] == "tool.0":
                assert {"city", "unit"} <= arguments.keys() <= {"city", "unit", "days"}
                assert len(arguments["city"]) <= 8 and arguments["unit"] in "CF" and 1 <= arguments.get("days", 1) <= 9
            else:
                assert call["name"] == "tool.1" and arguments.keys() == ODD["properties"].keys()
                assert arguments['q"<|"|>'] == 'x<|"|>,}{"\n' and -1 <= arguments["größe"] <= 1
                assert arguments["a b"] is None and isinstance(arguments["true"], bool)
                assert all(item == {} for item in arguments["in"]["a:b"])
    assert several


def test_a_named_tool_is_called_once() -> None:
    tools, rng = tools_of(WEATHER, {}), np.random.default_rng(2)
    for _ in range(3):
        [call] = calls(drawn(constraint({"tools": {"name": "tool.1"}}, tools=tools), rng))
        assert call == {"name": "tool.1", "arguments": {}}
        [one] = calls(drawn(constraint({"tools": "required", "parallel_tool_calls": False}, tools=tools), rng))
        assert one["name"] in ("tool.0", "tool.1")


def test_keys_come_in_any_order() -> None:
    from schema_tools import takes

    grammar = call_grammar(
        tools_of(
            {"properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}, "required": ["b"]}
        ),
        "required",
        False,
        SPECIAL,
    )
    inside = grammar.replace("<[1]>", '"<"').replace("<[2]>", '">"')
    pairs = {name: f"{name}:null" for name in "abc"}
    for count in range(4):
        for order in itertools.permutations("abc", count):
            text = "<call:tool.0{" + ",".join(pairs[name] for name in order) + "}>"
            assert takes(inside, text) == ("b" in order), text
    assert not takes(inside, "<call:tool.0{b:null,b:null}>")


@pytest.mark.parametrize("text", ["", "Some text. "])
def test_auto_is_text_or_a_call(text: str) -> None:
    special = tokenizer().special_tokens
    form = constraint({"tools": "auto"}, tools=tools_of(WEATHER))
    for token in tokenizer().encode(text):
        assert token in allowed(form) and special["<eos>"] in allowed(form)
        form.advance(token)
    assert {special["<tool_call|>"], special['<|"|>'], special["<|channel>"]}.isdisjoint(allowed(form))
    form.advance(special["<|tool_call>"])
    assert special["<eos>"] not in allowed(form)
    ids = drawn(form, np.random.default_rng(3))
    [call, *_] = [piece for piece in pieces_of([special["<|tool_call>"], *ids]) if piece.kind == "tool_call"]
    assert call.tool_call["name"] == "tool.0"
    ended = constraint({"tools": "auto"}, tools=tools_of(WEATHER))
    assert special["<turn|>"] in allowed(ended)


def test_no_call_begins_that_might_not_be_whole() -> None:
    tools, rng = tools_of({}), np.random.default_rng(4)
    opening = tokenizer().special_tokens["<|tool_call>"]
    form = constraint({"tools": "required"}, tools=tools, limit=120)
    ids: list[int] = []
    while True:
        choices = allowed(form)
        choice = opening if opening in choices else int(rng.choice(choices))
        if choice in (1, 9, 16):
            break
        form.advance(choice)
        ids.append(choice)
    each = ids.index(opening, 1)
    assert len(ids) == each * len(calls(ids)) and 4 <= 120 / each - len(ids) / each + 1 < 5, text_of(ids)


def test_other_types_of_tokens_lack_calls() -> None:
    from gemma4_core import InputError

    with pytest.raises(InputError, match="no token"):
        call_grammar(tools_of({}), "required", True, {"<|tool_call>": 1})
