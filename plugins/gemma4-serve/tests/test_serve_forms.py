"""Answers of a given form over HTTP, where a package that builds constraints is installed."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from anthropic import Anthropic
from openai import OpenAI
from pydantic import BaseModel
from serve_tools import Live, demo_model

from gemma4_core import registry

pytestmark = pytest.mark.skipif(not registry.constraints, reason="no package that builds constraints is installed")
SAID: Any = [{"role": "user", "content": "go"}]
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
                              "required": ["city"], "additionalProperties": False}  # fmt: skip
FUNCTION: dict[str, Any] = {"name": "look", "description": "Looks.", "parameters": PARAMETERS}
TOOL: Any = {"type": "function", "function": FUNCTION}


class Size(BaseModel):
    """An answer's form."""

    size: Literal["small", "large"]
    count: int


@pytest.fixture
def openai(live: Live) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0, timeout=120)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_come_comes(openai: OpenAI, choice: Any, stream: bool) -> None:
    asked: Any = {"model": "demo", "messages": SAID, "tools": [TOOL], "tool_choice": choice, "max_tokens": 40,
                  "parallel_tool_calls": False}  # fmt: skip
    if stream:
        with openai.chat.completions.stream(**asked) as events:
            found = events.get_final_completion()
    else:
        found = openai.chat.completions.create(**asked)
    [call] = found.choices[0].message.tool_calls
    assert found.choices[0].finish_reason == "tool_calls" and call.function.name == "look"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_a_form_is_parsed_by_the_typed_client(openai: OpenAI) -> None:
    found = openai.chat.completions.parse(model="demo", messages=SAID, response_format=Size, max_tokens=60)
    assert found.choices[0].message.parsed is not None and found.choices[0].message.parsed.size in ("small", "large")
    text = openai.responses.parse(model="demo", input="go", text_format=Size, max_output_tokens=60)
    assert text.output_parsed is not None and text.output_parsed.size in ("small", "large")


def test_the_other_interfaces_force_calls_too(openai: OpenAI, live: Live) -> None:
    tool: Any = {"type": "function", "strict": True, **FUNCTION}
    responded = openai.responses.create(model="demo", input="go", tools=[tool], tool_choice="required",
                                        max_output_tokens=40)  # fmt: skip
    assert json.loads(responded.output[0].arguments)["city"] in ("Paris", "Rome")  # type: ignore[union-attr]
    anthropic = Anthropic(api_key="none", base_url=live.url, max_retries=0, timeout=120)
    tools: Any = [{"name": "look", "input_schema": PARAMETERS}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "look"}):
        said = anthropic.messages.create(model="demo", max_tokens=40, messages=SAID, tools=tools, tool_choice=choice)  # type: ignore[arg-type]
        assert said.stop_reason == "tool_use" and said.content[0].input["city"] in ("Paris", "Rome")  # type: ignore[union-attr]


def test_a_call_that_the_model_begins_is_whole(live: Live) -> None:
    begin = demo_model().tokenizer.encode("<|tool_call>")[0]
    body = {"messages": SAID, "tools": [TOOL], "max_tokens": 40, "logit_bias": {str(begin): 100}, "temperature": 1.5,
            "parallel_tool_calls": False, "seed": 1}  # fmt: skip
    message = live.post("/v1/chat/completions", body).json()["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"])["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("schema", [{"type": "hiccup"}, {"type": 5}, {"$ref": "https://a.b/c"}, {"pattern": "(" * 50}])
def test_a_form_that_is_none_is_told(live: Live, schema: Any) -> None:
    """vLLM CVE-2025-48942 to -48944: a wrong schema is its own request's fault."""
    answer = live.post("/v1/chat/completions", {"messages": SAID, "max_tokens": 4, "response_format": {
        "type": "json_schema", "json_schema": {"name": "a", "schema": schema}}})  # fmt: skip
    assert answer.status_code == 400 and "\n" not in answer.json()["error"]["message"]
    assert live.ask().status_code == 200
