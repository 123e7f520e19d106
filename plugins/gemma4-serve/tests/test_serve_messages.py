"""``/v1/messages``: Anthropic's interface, through its typed client and by the letter."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError
from serve_tools import Live, script

SAID: Any = [{"role": "user", "content": "add 2 and 3"}]
LOOK: Any = {"name": "look", "description": "Looks.", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
CALL = "<|tool_call>call:look{city:<|\"|>Paris<|\"|>}<tool_call|>"
GREEDY = {"temperature": 0}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="


@pytest.fixture
def anthropic(live: Live) -> Anthropic:
    return Anthropic(api_key="none", base_url=live.url, max_retries=0)


def test_an_answer_whole_and_streamed(anthropic: Anthropic, live: Live) -> None:
    found = anthropic.messages.create(model="demo", max_tokens=8, messages=SAID, extra_body=GREEDY)
    text = live.ask().json()["choices"][0]["message"]["content"]
    assert (found.content[0].type, found.content[0].text, found.stop_reason) == ("text", text, "end_turn")
    with anthropic.messages.stream(model="demo", max_tokens=8, messages=SAID, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == text
        last = stream.get_final_message()
    assert last.content[0].text == text and last.usage.output_tokens == found.usage.output_tokens  # type: ignore[union-attr]
    assert last.usage.input_tokens + (last.usage.cache_read_input_tokens or 0) == anthropic.messages.count_tokens(
        model="demo", messages=SAID
    ).input_tokens
    cut = anthropic.messages.create(model="demo", max_tokens=2, extra_body=GREEDY, messages=[
        {"role": "user", "content": "tell a story"}])  # fmt: skip
    assert cut.stop_reason == "max_tokens"


def test_thinking_text_and_tools_are_blocks(anthropic: Anthropic, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 90, "messages": SAID, "tools": [LOOK],
                             "thinking": {"type": "enabled", "budget_tokens": 1024}}  # fmt: skip
    with script(monkeypatch, f"<|channel>thought\nhm<channel|>well{CALL}{CALL}"):
        found = anthropic.messages.create(**asked)
        with anthropic.messages.stream(**asked) as stream:
            events = [event.type for event in stream]
            last = stream.get_final_message()
        one = anthropic.messages.create(**asked, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    for message in (found, last):
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert message.content[0].thinking.strip() == "hm" and message.content[0].signature  # type: ignore[union-attr]
        assert message.content[2].input == {"city": "Paris"} and message.stop_reason == "tool_use"  # type: ignore[union-attr]
        assert message.content[2].id != message.content[3].id  # type: ignore[union-attr]
    assert events.count("content_block_start") == events.count("content_block_stop") == 4
    assert [block.type for block in one.content] == ["thinking", "text", "tool_use"] and one.stop_reason == "tool_use"


def test_events_by_the_letter(live: Live) -> None:
    events = live.events("/v1/messages", {"max_tokens": 4, "messages": SAID, "stream": True, "temperature": 0})
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = events[0]["message"]
    assert start["content"] == [] and start["usage"]["input_tokens"] > 0 and start["stop_reason"] is None
    assert events[-2]["usage"]["output_tokens"] > 0 and "timings" not in events[-1]


def test_a_stop_sequence_is_named(anthropic: Anthropic) -> None:
    story: Any = [{"role": "user", "content": "tell a story"}]
    text = anthropic.messages.create(model="demo", max_tokens=12, extra_body=GREEDY, messages=story).content[0].text  # type: ignore[union-attr]
    found = anthropic.messages.create(model="demo", max_tokens=12, extra_body=GREEDY, messages=story,
                                      stop_sequences=["never", text[4:7]])  # fmt: skip
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", text[4:7])
    assert found.content[0].text == text[: text.index(text[4:7])]  # type: ignore[union-attr]


def test_results_of_tools_become_messages(live: Live) -> None:
    """Beside text and with a picture, as llama.cpp's tests have it (test_compat_anthropic.py)."""
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}, picture]}
    body = {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}], "tools": [LOOK],
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "I should look first.", "signature": "x"},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Paris"}}]},
                {"role": "user", "content": [{"type": "text", "text": "Here:"}, result]},
            ]}  # fmt: skip
    found = live.post("/v1/messages", {**body, "max_tokens": 3})
    assert found.status_code == 200 and found.json()["content"][0]["type"] == "text"
    messages: Any = body["messages"]
    messages[2]["content"] = [{**result, "content": "sunny"}]
    count = live.post("/v1/messages/count_tokens", body).json()
    assert count.keys() == {"input_tokens"} and count["input_tokens"] > 40
    del messages[1]["content"][0]  # thoughts count while the turn goes on
    assert live.post("/v1/messages/count_tokens", body).json()["input_tokens"] < count["input_tokens"]


@pytest.mark.parametrize(("change", "words"), [
    ({"max_tokens": None}, "max_tokens"), ({"messages": None}, "messages"), ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "role"), ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "block"), ({"system": 5}, "system"), ({"tools": 5}, "tools"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "smell"), ({"thinking": True}, "thinking"),
    ({"tool_choice": {"type": "x"}, "tools": [LOOK]}, "tool_choice"), ({"temperature": "hot"}, "temperature"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
        "type": "url", "url": "https://a.b/c.png"}}]}]}, "no URLs"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
        "type": "base64", "data": "///etc/passwd"}}]}]}, "base64"),
])  # fmt: skip
def test_what_cannot_be_answered_is_told(live: Live, change: dict[str, Any], words: str) -> None:
    answer = live.post("/v1/messages", {"max_tokens": 2, "messages": SAID, **change})
    body = answer.json()
    assert answer.status_code == 400 and body["type"] == "error", answer.text
    assert body["error"]["type"] == "invalid_request_error" and words in body["error"]["message"]


def test_the_typed_client_raises_what_the_error_says(anthropic: Anthropic) -> None:
    with pytest.raises(BadRequestError, match="tokens"):
        anthropic.messages.create(model="demo", max_tokens=8, messages=[{"role": "user", "content": "word " * 400}])
