"""Calls of offered tools in other spellings than the model's own: found where they parse, else text, never lost."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from gemma4_core.contracts import Context
from gemma4_core.errors import InputError
from gemma4_core.text import AnswerSplitter, Piece
from gemma4_core.text.dialects import OfferedTools
from gemma4_core.text.recovery import CallRecovery
from gemma4_core.text.tiny import copy_tiny_tokenizer
from gemma4_plugins.tokenizers import huggingface

Q = '<|"|>'
NAMES = ("get_weather", "stop", "get", "ns.add-it")
TOOLS = [{"type": "function", "function": {"name": name}} for name in NAMES]
OSLO = ("get_weather", {"city": "Oslo"})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    copy_tiny_tokenizer(folder)
    return huggingface.load(Context(folder=folder))


def split(tokenizer, answer: str | list[int], tools: Any = TOOLS) -> list[Any]:
    """Texts, thinking as ``("thinking", text)`` and calls as ``(name, arguments)``; neighbouring texts joined."""
    ids = tokenizer.encode(answer) if isinstance(answer, str) else answer
    splitter = AnswerSplitter(tokenizer, tools=tools)
    pieces = [piece for token in ids for piece in splitter.add(token)] + splitter.finish()
    assert splitter.finish() == []
    return joined(pieces)


def joined(pieces: list[Piece]) -> list[Any]:
    found: list[Any] = []
    for piece in pieces:
        assert piece.text
        if piece.tool_call is not None:
            found.append((piece.tool_call["name"], piece.tool_call["arguments"]))
        elif piece.kind == "thinking":
            before = found.pop()[1] if found and found[-1][0] == "thinking" else ""
            found.append(("thinking", before + piece.text))
        elif found and isinstance(found[-1], str):
            found[-1] += piece.text
        else:
            found.append(piece.text)
    return found


CALLS = {
    "no opening mark": (f"call:get_weather{{city:{Q}Oslo{Q}}}<tool_call|>", [OSLO]),
    "no marks": (f"call:get_weather{{city:{Q}Oslo{Q}}}", [OSLO]),
    "no closing mark": (f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q}}}", [OSLO]),
    "no closing mark before a result": (f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q}}}<|tool_response>", [OSLO]),
    "no closing mark before a call": ("<|tool_call>call:get_weather{city:Oslo}<|tool_call>call:stop{}<tool_call|>",
                                      [OSLO, ("stop", {})]),
    "two opening marks": ("<|tool_call><|tool_call>call:stop{}<tool_call|>", [("stop", {})]),
    "marks without call:": (f"<|tool_call>get_weather{{city:{Q}Oslo{Q}}}<tool_call|>", [OSLO]),
    "neither": ('get_weather{city:"Oslo"}', [OSLO]),
    "several in one pair of marks": ("<|tool_call>call:get_weather{city:Oslo}, call:stop{}\ncall:get{a:1}<tool_call|>",
                                     [OSLO, ("stop", {}), ("get", {"a": 1})]),
    "python": ("get_weather(city='Oslo')", [OSLO]),
    "python in marks": ('<|tool_call>get_weather(city="Oslo")<tool_call|>', [OSLO]),
    "python with call:": ('<|tool_call>call:get_weather(city="Oslo")<tool_call|>', [OSLO]),
    "python literals": ("get(a=True, b=None, c=[1, {'d': False}], e=-1.5e3, f='x, (y)')",
                        [("get", {"a": True, "b": None, "c": [1, {"d": False}], "e": -1500.0, "f": "x, (y)"})]),
    "python with a map": ('get_weather({"city": "Oslo"})', [OSLO]),
    "printed": ("```tool_code\nprint(default_api.get_weather(city='Oslo'))\n```", [OSLO]),
    "tool_code, two lines": ("```tool_code\nget_weather(city='Oslo')\nstop()\n```", [OSLO, ("stop", {})]),
    "python list": ("[get_weather(city='Oslo'), stop()]", [OSLO, ("stop", {})]),
    "double braces": ('call:get_weather{{"city": "Oslo"}}', [OSLO]),
    "double braces in marks": ('<|tool_call>call:get_weather{{"city": "Oslo"}}<tool_call|>', [OSLO]),
    "double braces around an object": ('{{"name": "get_weather", "arguments": {"city": "Oslo"}}}', [OSLO]),
    "JSON quotes": ('call:get_weather{"city":"Oslo"}', [OSLO]),
    "single quotes": ("<|tool_call>call:get_weather{'city':'Oslo'}<tool_call|>", [OSLO]),
    "bare words": ("<|tool_call>call:get{a:New York, b:10:30, c:https://x.y/z, d:2026-11-30, e:1.2.3}<tool_call|>",
                   [("get", {"a": "New York", "b": "10:30", "c": "https://x.y/z", "d": "2026-11-30", "e": "1.2.3"})]),
    "equals signs": ('call:get{a="x", b=2}', [("get", {"a": "x", "b": 2})]),
    "object": ('{"name": "get_weather", "arguments": {"city": "Oslo"}}', [OSLO]),
    "object in marks": ('<|tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}<tool_call|>', [OSLO]),
    "object with parameters": ('{"name": "get_weather", "parameters": {"city": "Oslo"}}', [OSLO]),
    "arguments first": ('{"arguments": {"city": "Oslo"}, "name": "get_weather"}', [OSLO]),
    "arguments as a string": ('{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', [OSLO]),
    "OpenAI": ('{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}', [OSLO]),
    "OpenAI with an id": (
        '{"id": "call_1", "function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}', [OSLO]),
    "tool_calls": ('{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}},'
                   ' {"function": {"name": "stop", "arguments": "{}"}}]}', [OSLO, ("stop", {})]),
    "list of objects": ('[{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "stop", "arguments": {}}]',
                        [OSLO, ("stop", {})]),
    "objects": ('{"name": "get_weather", "arguments": {"city": "Oslo"}}\n{"name": "stop", "arguments": {}}',
                [OSLO, "\n", ("stop", {})]),
    "json block": ('```json\n{\n  "name": "get_weather",\n  "arguments": {"city": "Oslo"}\n}\n```', [OSLO]),
    "plain block": ("```\ncall:get_weather{city:Oslo}\n```", [OSLO]),
    "block cut at the end": ('```json\n{"name": "stop", "arguments": {}}', [("stop", {})]),
    "marks as text": ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>', [OSLO]),
    "another case": ("call:Get_Weather{city:Oslo}", [OSLO]),
    "functions.": ("<|tool_call>call:functions.get_weather{city:Oslo}<tool_call|>", [OSLO]),
    "functions. in good syntax": (f"<|tool_call>call:functions.get_weather{{city:{Q}Oslo{Q}}}<tool_call|>", [OSLO]),
    "braces in strings": (f"call:get{{a:{Q}}} {{x: [1] ( \" '{Q},b:\"}}}}\",c:{{d:{{e:{{}}}}}}}}",
                          [("get", {"a": "} {x: [1] ( \" '", "b": "}}", "c": {"d": {"e": {}}}})]),
    "escapes": ('get(a="\\u00e9 \\ud83e\\udd99 \\"q\\"\\n")', [("get", {"a": 'é \U0001f999 "q"\n'})]),
    "an apostrophe": ("call:get{a:\"it's\", b:'say \"hi\"'}", [("get", {"a": "it's", "b": 'say "hi"'})]),
    "after thinking": ("<|channel>thought\nHm<channel|>call:get_weather{city:Oslo}", [("thinking", "Hm"), OSLO]),
    "text around": ("Let me see.call:get_weather{city:Oslo}And so.", ["Let me see.", OSLO, "And so."]),
    "text around python": ("Let me see. get_weather(city='Oslo')\nAnd so.", ["Let me see. ", OSLO, "\nAnd so."]),
    "text around an object": ('See:\n\n{"name": "stop", "arguments": {}}\n\nSo.',
                              ["See:\n\n", ("stop", {}), "\n\nSo."]),
    "text in the marks": ("<|tool_call>call:stop{} Done.<tool_call|>", [("stop", {}), " Done."]),
    "text after unclosed marks": ("<|tool_call>call:stop{}\nDone.", [("stop", {}), "\nDone."]),
    "parallel": ("call:get_weather{city:Oslo}call:stop{}", [OSLO, ("stop", {})]),
    "parallel python": ("get(a=1); stop()get(b=2)", [("get", {"a": 1}), "; ", ("stop", {}), ("get", {"b": 2})]),
    "a dotted name": ("ns.add-it(a=1)", [("ns.add-it", {"a": 1})]),
}


@pytest.mark.parametrize("case", CALLS)
def test_call_dialects(tokenizer, case: str):
    answer, expected = CALLS[case]
    assert split(tokenizer, answer) == expected


@pytest.mark.parametrize("case", CALLS)
def test_call_dialects_stay_text_without_tools(tokenizer, case: str):
    """As before: only the model's own syntax between its marks is a call."""
    answer, _ = CALLS[case]
    for found in split(tokenizer, answer, tools=None):
        assert isinstance(found, str) or found[0] in ("thinking", "functions.get_weather", "get_weather", "stop")
    if "<|tool_call>" not in answer and "<|channel>" not in answer:
        assert split(tokenizer, answer, tools=None) == [
            tokenizer.decode(tokenizer.encode(answer), skip_special=True)]


TEXTS = [
    "call:other{a:1}", "other(a=1)", '{"name": "other", "arguments": {}}', "recall:get{a:1}", "`call:get{a:1}`",
    "I would write get(a=1) for it.", "get(a=1) would do it.", "get(the news)", "get(1, 2)", "get (a=1)", "get",
    "call:get", "call:get{", "call:get{a:1", 'call:get{a:"x}', "call:get{a:[1}", "call:get{a:b c: d}", "get(a=f(x))",
    "get(a=1), and then", "get(a=1e999)",
    '{"name": "get"}', '{"id": "7", "name": "get"}', '{"name": "get", "arguments": [1]}', '{"name": "get", "age": 3}',
    '{"names": 1}', '[{"a": 1}]',
    "[get](http://x)", "```python\nget(a=1)\n```", "```json\n{\"a\": 1}\n```", "```\nx\nget(a=1)\n```", "f(x) = {y}",
    "{}", "[]", "<b>bold</b>", "get{a b}", "call:get{a:\"\\ud800\"}", '{"name": "get", "arguments": "no"}',
    "call:get{a:\"\nstop()\n", "call:get{a:\nstop()\n", "{{{{{{", "call:get{{{{{{a:1}}}}}}", "print(get)", "c", "cal",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_is_text(tokenizer, text: str):
    assert split(tokenizer, text) == [text]
    assert split(tokenizer, f"<|tool_call>{text}") == [text]
    assert split(tokenizer, f"Hi\n{text}") == ["Hi\n" + text]


def test_strings_of_a_cut_call_are_not_calls(tokenizer):
    """The budget may end inside an argument that itself spells a call."""
    for name in ("get", "other"):
        for start in ("", "<|tool_call>"):
            assert split(tokenizer, f"{start}call:{name}{{code:{Q}x\nstop()\ncall:stop{{}}\n") == [
                f'call:{name}{{code:"x\nstop()\ncall:stop{{}}\n']


def recovery() -> CallRecovery:
    return CallRecovery(OfferedTools(NAMES))


@pytest.mark.parametrize("case", CALLS)
def test_no_part_of_a_call_is_shown_as_text(case: str):
    """Every beginning of the answer shows at most the text that stands before the call in the end."""
    answer, expected = CALLS[case]
    if "<|" in answer:
        return
    shown, before = "", expected[0] if isinstance(expected[0], str) else ""
    finder = recovery()
    for char in answer:
        for found in finder.add(char):
            if not isinstance(found, str):
                return
            shown += found
            assert before.startswith(shown)


def test_ordinary_text_is_held_back_only_while_it_can_be_a_call():
    finder = recovery()
    text = "He said (so): {a} [b] f(x) get on, call me, stop! `x` <b> {\"a\": 1}\n```python\nget(a=1)\n``` end"
    longest = 0
    for char in text:
        finder.add(char)
        longest = max(longest, len(finder.held))
    assert longest <= len("```p") and finder.held == ""
    assert recovery().add("Plain text") == ["Plain text"]


def test_random_answers_are_the_same_however_they_are_cut():
    """Splits do not matter, and texts with the calls' spellings in their places are the whole answer."""
    draw = random.Random(21)
    whole = [answer for answer, _ in CALLS.values() if "<|" not in answer]
    bits = [*whole, *TEXTS, "call:", "get(", "{", "}", ")", "\n", " ", '"', "'", "```", "```json\n", "a=1", "[", "]"]
    for _ in range(1500):
        answer = "".join(draw.choice(bits) for _ in range(draw.randrange(1, 6)))
        if draw.random() < 0.5:
            at = draw.randrange(len(answer))
            answer = answer[:at] + draw.choice(["", *string.punctuation]) + answer[at + 1 :]
        results = []
        for longest in (1, 4, len(answer)):
            finder, found, at = recovery(), [], 0
            while at < len(answer):
                size = draw.randint(1, longest) if longest < len(answer) else longest
                found += finder.add(answer[at : at + size])
                at += size
            found += finder.flush()
            assert finder.held == ""
            merged: list[Any] = []
            for one in found:
                if isinstance(one, str) and merged and isinstance(merged[-1], str):
                    merged[-1] += one
                else:
                    merged.append(one)
            results.append(merged)
        assert results[0] == results[1] == results[2]
        rest = answer
        for one in results[0]:
            if isinstance(one, str):
                assert one in rest
                rest = rest[rest.index(one) + len(one) :]
        if all(isinstance(one, str) for one in results[0]):
            assert "".join(results[0]) == answer


def test_random_ids_lose_nothing_with_tools_offered(tokenizer):
    draw = random.Random(22)
    special = list(tokenizer.special_tokens.values())
    for _ in range(300):
        ids = [draw.choice(special) if draw.random() < 0.3 else draw.randrange(280, 512)
               for _ in range(draw.randrange(60))]
        plain = tokenizer.decode(ids, skip_special=True)
        found = split(tokenizer, ids)
        assert all(isinstance(one, str) or one[0] == "thinking" for one in found)
        texts = "".join(one if isinstance(one, str) else one[1] for one in found)
        assert texts.replace('"', "") == plain.replace('"', "")


@pytest.mark.parametrize(
    "tools",
    [
        TOOLS, {"tools": TOOLS}, [{"name": "stop", "inputSchema": {}}], [{"name": "stop", "input_schema": {}}],
        {"functionDeclarations": [{"name": "stop"}]}, {"name": "stop"},
    ],
)  # fmt: skip
def test_tools_in_any_form_reach_the_splitter(tokenizer, tools: Any):
    assert split(tokenizer, "stop()", tools) == [("stop", {})]


def test_a_wrong_declaration_is_an_error_of_the_splitter(tokenizer):
    with pytest.raises(InputError, match="lacks function"):
        AnswerSplitter(tokenizer, tools=[{"type": "function"}])


def test_names_that_differ_in_case_only_are_kept_apart(tokenizer):
    tools = [{"name": "Get"}, {"name": "get"}]
    assert split(tokenizer, "call:get{}call:Get{}", tools) == [("get", {}), ("Get", {})]
    assert split(tokenizer, "call:GET{}", tools) == ["call:GET{}"]


def test_long_dialect_calls_take_linear_time(tokenizer):
    finder = recovery()
    assert finder.add("call:get{a:\"" + "x{" * 100_000) == []
    assert finder.flush() == ["call:get{a:\"" + "x{" * 100_000]
    [one] = finder.add("get(a=[" + "1, " * 50_000 + "1])\n")[:1]
    assert not isinstance(one, str) and len(one.arguments["a"]) == 50_001

