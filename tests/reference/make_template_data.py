"""Renderings of chat templates by transformers, for ``tests/text/test_template_reference.py``.

Run by hand with ``transformers==5.23.0`` and ``jinja2==3.1.6``::

    python tests/reference/make_template_data.py

It writes ``tests/data/template/renderings.json``: for every template a list of cases, each with the arguments of
``apply_chat_template`` and its text, or null where transformers refuses. The templates are

- ``launch``: ``tests/data/template/launch.jinja``, the first released revision for the large models (Gemma 4 is
  published under the Apache License 2.0);
- ``tiny``: ``src/gemma4_core/data/tokenizer/chat_template.jinja``, our own, with the rules of the later revisions;
- ``dialect``: ``tests/data/template/dialect.jinja``, what transformers' environment adds to plain jinja2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import transformers

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "src" / "gemma4_core" / "data" / "tokenizer"
TEMPLATES = {
    "launch": ROOT / "tests" / "data" / "template" / "launch.jinja",
    "tiny": TINY / "chat_template.jinja",
    "dialect": ROOT / "tests" / "data" / "template" / "dialect.jinja",
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def model(content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(name: str, arguments: Any, number: str = "c1") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def function(name: str, description: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function",
            "function": {"name": name, "description": description, "parameters": parameters, **more}}


WEATHER = function("get_weather", "Get weather", {
    "type": "object", "properties": {"city": {"type": "string", "description": "City"}}, "required": ["city"]})
RICH = function("book_table", 'Book a "table" {now}', {
    "type": "object",
    "properties": {
        "when": {"type": "string", "description": "ISO time", "nullable": True},
        "area": {"type": "string", "enum": ["in", "out"]},
        "guests": {"type": "array", "description": "Who", "items": {
            "type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name"]}},
        "extras": {"type": "object", "description": "More", "properties": {"dog": {"type": "boolean"}},
                   "required": ["dog"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["when", "guests"]}, response={"type": "object", "description": "The booking"})
NOTHING = function("stop", "Stop")
ARGUMENTS = {"z": None, "city": "Oslo", "quote": 'He said "hi" {x} <b>', "n": -3, "f": 1.5, "yes": True, "no": False,
             "list": ["a", 1, [2, {"k": "v"}]], "map": {"b": {"c": []}, "a": ""}}
PARTS = [{"type": "text", "text": " What is this? "}, {"type": "image"}, {"type": "text", "text": "and this"},
         {"type": "audio"}, {"type": "video"}]
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": '{"temp": 5}'}

CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([user("Hi")], {}),
    ([user("  Hi there \n")], {"enable_thinking": True}),
    ([{"role": "system", "content": " Be brief. "}, user("Hi")], {}),
    ([{"role": "developer", "content": "Be brief."}, user("Hi")], {"enable_thinking": True}),
    ([user("1"), model("one"), user("2"), model("two"), user("3")], {}),
    ([user("1"), model("<|channel>thought\nhm<channel|>one"), user("2")], {}),
    ([user("1"), model("one")], {"add_generation_prompt": False}),
    ([user(PARTS)], {}),
    ([user([{"type": "image", "url": "x.png"}, {"type": "text", "text": "a"}]), model([{"type": "text", "text": "b"}]),
      user("c")], {}),
    ([user("Weather in Oslo?")], {"tools": [WEATHER]}),
    ([user("x")], {"tools": [RICH, WEATHER]}),
    ([user("x")], {"tools": [NOTHING]}),
    ([user("x")], {"tools": []}),
    ([{"role": "system", "content": "S"}, user("x")], {"tools": [RICH], "enable_thinking": True}),
    ([user("W"), model(tool_calls=[call("get_weather", {"city": "Oslo"})])], {"tools": [WEATHER]}),
    ([user("W"), model("Let me see.", tool_calls=[call("f", ARGUMENTS), call("g", {}, "c2")])], {}),
    ([user("W"), model(tool_calls=[call("f", 'a:<|"|>b<|"|>')])], {}),
    ([user("W"), model(tool_calls=[call("get_weather", {"city": "Oslo"})]), RESULT], {"tools": [WEATHER]}),
    ([user("W"), model(tool_calls=[call("get_weather", {"city": "Oslo"})]), RESULT],
     {"tools": [WEATHER], "enable_thinking": True}),
    ([user("W"), model(tool_calls=[call("get_weather", {"city": "Oslo"})]), RESULT, model("5 degrees."),
      user("Thanks")], {"tools": [WEATHER]}),
    ([user("W"), model(tool_calls=[call("f", {"a": 1})], tool_responses=[
        {"name": "f", "response": {"temp": 5, "unit": "C", "deep": {"x": [True, "y"]}}},
        {"name": "g", "response": "ok"}])], {}),
    ([user("W"), model("Done.", tool_responses=[{"name": "f", "response": 3}]), user("next")], {}),
    ([user("x"), model("y", reasoning="because"), user("z"), model("w", reasoning_content="so"), user("v")], {}),
    ([user("x"), model("y", thinking="because")], {"enable_thinking": True}),
    ([user("漢字 \U0001f999 <|turn>not mine<turn|> \0 <b>&\"'")], {}),
    ([user("")], {}),
    ([user("x")] * 5, {"effort": "high"}),
]


def main() -> None:
    assert transformers.__version__ == "5.23.0" and jinja2.__version__ == "3.1.6"
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    renderings: dict[str, Any] = {}
    for name, path in TEMPLATES.items():
        renderings[name] = []
        for messages, options in CONVERSATIONS:
            arguments = {"add_generation_prompt": True, "enable_thinking": False, **options}
            try:
                text = tokenizer.apply_chat_template(
                    messages, chat_template=path.read_text(encoding="utf-8"), tokenize=False, **arguments)
            except (jinja2.TemplateError, TypeError, ValueError) as fault:
                print(name, "refuses:", fault)
                text = None
            renderings[name].append({"messages": messages, "options": options, "text": text})
    out = ROOT / "tests" / "data" / "template" / "renderings.json"
    out.write_text(json.dumps(renderings, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(out.relative_to(ROOT), out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
