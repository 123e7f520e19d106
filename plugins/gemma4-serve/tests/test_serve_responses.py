"""``/v1/responses``: items in, items and events out, through the typed client and the Agents SDK."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from serve_tools import Live, demo_model, script

CALL = "<|tool_call>call:look{city:<|\"|>Paris<|\"|>}<tool_call|>"
LOOK: Any = {"type": "function", "name": "look", "description": "Looks.", "strict": None, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}


@pytest.fixture
def openai(live: Live) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0)


def test_text_in_text_out(openai: OpenAI, live: Live) -> None:
    found = openai.responses.create(model="demo", input="add 2 and 3", temperature=0, max_output_tokens=8)
    assert found.output_text == live.ask().json()["choices"][0]["message"]["content"]
    assert found.status == "completed" and found.id.startswith("resp_") and found.output[0].id.startswith("msg_")  # type: ignore[union-attr]
    cut = openai.responses.create(model="demo", input="tell a story", temperature=0, max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"  # type: ignore[union-attr]
    assert cut.usage is not None and cut.usage.output_tokens == 2
    assert cut.usage.output_tokens_details.reasoning_tokens == 0


def test_events_build_up_the_response(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    with script(monkeypatch, f"<|channel>thought\nhm<channel|>well{CALL}"):
        asked: dict[str, Any] = {"model": "demo", "input": "go", "tools": [LOOK], "max_output_tokens": 90}
        whole = openai.responses.create(**asked)
        events = list(openai.responses.create(**asked, stream=True))
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    last = events[-1].response
    assert [item.type for item in last.output] == ["reasoning", "message", "function_call"]
    assert [item.type for item in whole.output] == [item.type for item in last.output]
    assert last.output_text == whole.output_text == "well"
    assert json.loads(last.output[2].arguments) == {"city": "Paris"}
    for start, end in (("output_item.added", "output_item.done"), ("content_part.added", "content_part.done")):
        assert kinds.count(f"response.{start}") == kinds.count(f"response.{end}") >= 2
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert (text, thought.strip(), json.loads(arguments)) == ("well", "hm", {"city": "Paris"})
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item.id for item in last.output]
    assert last.usage.output_tokens_details.reasoning_tokens > 0


def test_a_conversation_with_calls_is_read_as_one(live: Live) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "look at Paris"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "well"}]},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"type": "web_search_call", "id": "ws_1"},
    ]
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "look at Paris"},
        {"role": "assistant", "content": "well", "reasoning_content": "hm", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": {key: LOOK[key] for key in ("name", "description", "parameters")}}]
    mine = live.post("/v1/responses/input_tokens", {"input": items, "instructions": "Be brief.", "tools": [
        LOOK, {"type": "web_search"}, {"type": "local_shell"}]}).json()  # fmt: skip
    theirs = live.post("/v1/chat/completions/input_tokens", {"messages": messages, "tools": tools}).json()
    assert mine["input_tokens"] == theirs["input_tokens"]


def test_a_tool_of_free_text(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    with script(monkeypatch, '<|tool_call>call:patch{input:<|"|>*** Begin\n+a<|"|>}<tool_call|>'):
        body = {"input": "go", "tools": [{"type": "custom", "name": "patch", "description": "Edits."}]}
        events = live.events("/v1/responses", {**body, "stream": True})
    item = events[-1]["response"]["output"][0]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "*** Begin\n+a")
    assert any(event["type"] == "response.custom_tool_call_input.delta" for event in events)


def test_progress_and_timings_are_told_where_asked(live: Live) -> None:
    body = {"input": "This is a test " * 8, "max_output_tokens": 4, "stream": True, "timings_per_token": True,
            "return_progress": True}  # fmt: skip
    events = live.events("/v1/responses", body)
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert progress[-1]["processed"] == progress[-1]["total"] > progress[0]["processed"] == progress[0]["cache"]
    assert all("timings" in event for event in events if event["type"] == "response.output_text.delta")
    assert events[-1]["timings"]["prompt_per_second"] > 0 <= events[-1]["timings"]["predicted_per_second"]


@pytest.mark.parametrize(("change", "words"), [
    ({"input": None}, "input"), ({"input": []}, "input"), ({"input": [5]}, "input[0]"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"conversation": "a"}, "conversation"),
    ({"background": True}, "background"), ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]"),
    ({"text": {"format": {"type": "sound"}}}, "response_format"), ({"tools": {}}, "tools"), ({"text": 5}, "text"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "a"}]}]}, "input_file"),
    ({"instructions": 5}, "instructions"), ({"reasoning": "high"}, "reasoning"),
    ({"max_output_tokens": 0}, "max_tokens"),
])
def test_what_cannot_be_answered_is_told(live: Live, change: dict[str, Any], words: str) -> None:
    answer = live.post("/v1/responses", {"input": "hello", "max_output_tokens": 2, **change})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("interface", ["responses", "chat"])
def test_an_agent_calls_its_tool_and_answers(live: Live, monkeypatch: pytest.MonkeyPatch, interface: str) -> None:
    """The Agents SDK drives a loop: the model is forced to call, and to answer once there is a result."""
    from agents import (
        Agent,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )

    set_tracing_disabled(True)
    seen: list[str] = []

    @function_tool
    def look(city: str) -> str:
        """Looks."""
        seen.append(city)
        return "sunny"

    client = AsyncOpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0)
    kind = OpenAIResponsesModel if interface == "responses" else OpenAIChatCompletionsModel
    agent = Agent(name="A", instructions="Look.", tools=[look], model=kind("demo", client))

    async def run() -> Any:
        done = await Runner.run(agent, "go", max_turns=3)
        streamed = Runner.run_streamed(agent, "go", max_turns=3)
        async for _ in streamed.stream_events():
            pass
        return done.final_output, streamed.final_output

    with script(monkeypatch, CALL, "It is sunny."):
        assert asyncio.run(run()) == ("It is sunny.", "It is sunny.")
    assert seen == ["Paris", "Paris"] and demo_model().adapters is None
