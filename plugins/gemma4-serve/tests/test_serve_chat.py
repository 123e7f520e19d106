"""``/v1/chat/completions``: answers, streams, parameters, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI
from serve_tools import Live, demo_model, script, wait_until

SAID = [{"role": "user", "content": "add 2 and 3"}]
STORY = [{"role": "user", "content": "tell a story"}]


@pytest.fixture
def openai(live: Live) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0)


def test_an_answer_is_that_of_the_model_alone(live: Live) -> None:
    body = live.ask(n=2).json()
    alone = "".join(part.text for part in demo_model().stream_generate(SAID, 8, literal=True))
    assert [choice["message"]["content"] for choice in body["choices"]] == [alone, alone]
    assert body["object"] == "chat.completion" and body["model"] == "demo" and body["id"].startswith("chatcmpl-")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    long = "the cat is " * 20
    first, second = (live.ask(long).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 50


def test_a_stream_says_the_same_by_the_letter(live: Live) -> None:
    body = {"messages": STORY, "max_tokens": 24, "temperature": 0, "stream": True, "logprobs": True, "top_logprobs": 3,
            "ignore_eos": True, "stream_options": {"include_usage": True}}  # fmt: skip
    *chunks, last, done = live.events("/v1/chat/completions", body)
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 24
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, last]}) == 1
    first, *middle, end = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": None}
    assert end["delta"] == {} and end["finish_reason"] == "length"
    assert all(one["delta"] and "role" not in one["delta"] and one["finish_reason"] is None for one in middle)
    text = "".join(one["delta"]["content"] for one in middle)
    told = [token for one in middle for token in one["logprobs"]["content"]]
    assert "".join(token["token"] for token in told) == text and len(told) == 24
    assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in told)
    whole = live.ask("tell a story", max_tokens=24, ignore_eos=True, logprobs=True, top_logprobs=3).json()["choices"][0]
    assert whole["message"]["content"] == text
    assert [t["token"] for t in whole["logprobs"]["content"]] == [t["token"] for t in told]


def test_the_typed_client_reads_answers_and_streams(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(model="gpt-4", messages=SAID, max_completion_tokens=8, temperature=0)  # type: ignore[arg-type]
    pieces = openai.chat.completions.create(  # type: ignore[call-overload]
        model="gpt-4", messages=SAID, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    found = list(pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
    assert text == whole.choices[0].message.content and found[-1].usage.total_tokens == whole.usage.total_tokens  # type: ignore[union-attr]
    assert [model.id for model in openai.models.list()] == ["demo"]
    assert openai.models.retrieve("demo").id == "demo"


def test_parameters_change_the_answer(live: Live) -> None:
    def text(**asked: Any) -> str:
        return live.ask("tell a story", max_tokens=12, **asked).json()["choices"][0]["message"]["content"]

    plain = text()
    assert text(temperature=1.5, seed=3) == text(temperature=1.5, seed=3) != plain
    assert text(stop=plain[3:5]) == plain[: plain.index(plain[3:5])]
    ids = demo_model().tokenizer.encode(plain)
    assert text(logit_bias={str(ids[0]): -100}) != plain
    assert text(presence_penalty=2, frequency_penalty=2, repetition_penalty=3, ignore_eos=True) != plain
    assert text(user="me", metadata={}, store=True, service_tier="auto", unknown_of_theirs=1) == plain


def test_reasoning_and_tools_come_apart(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is a script: the model is forced along it."""
    text = "<|channel>thought\nhm ok\n<channel|>on it<|tool_call>call:look{city:<|\"|>Paris<|\"|>}<tool_call|>" \
             "<|tool_call>call:look{city:<|\"|>Rome<|\"|>}<tool_call|>"
    with script(monkeypatch, text):
        asked = {"messages": SAID, "tools": [tool("look")], "max_tokens": 100, "temperature": 0}
        whole = live.post("/v1/chat/completions", asked).json()
        chunks = live.events("/v1/chat/completions", {**asked, "stream": True})[:-1]
        single = live.post("/v1/chat/completions", {**asked, "parallel_tool_calls": False}).json()
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"].strip(), message["content"]) == ("hm ok", "on it")
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    assert calls == [("look", {"city": "Paris"}), ("look", {"city": "Rome"})]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == "hm ok"
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [piece["index"] for piece in pieces] == [0, 0, 1, 1]
    assert len({piece["id"] for piece in pieces if "id" in piece}) == 2
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces[:2])) == {"city": "Paris"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert len(single["choices"][0]["message"]["tool_calls"]) == 1
    assert single["choices"][0]["finish_reason"] == "tool_calls"


def test_thoughts_end_with_their_budget(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    before = demo_model().tokenizer.encode("<|channel>thought\n")
    bias = {str(before[0]): 100}  # it would begin to think, and go on
    said = live.ask(max_tokens=20, thinking_budget=5, logit_bias=bias).json()
    assert said["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 5


def tool(name: str) -> dict[str, Any]:
    """A tool's declaration."""
    return {"type": "function", "function": {"name": name, "description": "Looks.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@pytest.mark.parametrize(("change", "words"), [
    ({"messages": None}, "messages"), ({"messages": "Hi"}, "messages"), ({"messages": []}, "messages"),
    ({"messages": [1]}, "messages[0]"), ({"messages": [{"role": "usr", "content": "a"}]}, "role"),
    ({"messages": [{"role": "user", "content": 5}]}, "content"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "smell"),
    ({"messages": [*SAID, *2 * [{"role": "assistant", "content": "a"}]]}, "follow each other"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": "8"}, "max_tokens"), ({"n": 17}, "n 17"), ({"n": 0}, "n 0"),
    ({"temperature": -1}, "temperature"), ({"temperature": 1e400}, "JSON"), ({"top_p": 2}, "top_p"),
    ({"stop": ["a"] * 17}, "stop"), ({"stop": "a" * 300}, "stop"), ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"), ({"top_logprobs": 21}, "top_logprobs"),
    ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools"), ({"tools": [{}]}, "tools[0]"),
    ({"tool_choice": "required"}, "tool_choice"), ({"response_format": {"type": "sound"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": "x" * 70000}}}}, "64 kB"),
    ({"audio": {}}, "audio"), ({"modalities": ["audio"]}, "modalities"), ({"web_search_options": {}}, "not served"),
    ({"stream": "yes"}, "stream"), ({"stream_options": []}, "stream_options"), ({"model": 5}, "model"),
    ({"seed": -1}, "seed"), ({"cache_salt": ""}, "cache_salt"), ({"chat_template_kwargs": {"x": 1}}, "enable_thinking"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "exclude"),
])  # fmt: skip
def test_what_cannot_be_answered_is_told(live: Live, change: dict[str, Any], words: str) -> None:
    body = json.dumps({"messages": SAID, "max_tokens": 4, **change}).replace("Infinity", "1e400x")
    answer = live.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error", answer.text
    assert words in error["message"] and "\n" not in error["message"] and "/" not in error["message"]


def test_too_long_a_prompt_says_how_long(live: Live) -> None:
    for more in ({}, {"stream": True}):
        answer = live.ask("word " * 400, **more)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] == "context_length_exceeded"
        assert error["n_prompt_tokens"] > error["n_ctx"] == 256


def test_a_form_needs_a_package(live: Live) -> None:
    from gemma4_core import registry

    if registry.constraints:
        pytest.skip("a package that builds constraints is installed")
    for more in ({"response_format": {"type": "json_object"}}, {"tools": [tool("a")], "tool_choice": "required"}):
        error = live.ask(**more).json()["error"]
        assert "gemma4-schema" in error["message"]


def test_a_reader_that_leaves_frees_its_slot(live: Live) -> None:
    body = {"messages": STORY, "temperature": 0, "ignore_eos": True}
    with live.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        next(answer.iter_lines())
    wait_until(lambda: live.free)
    with pytest.raises(Exception, match="timed out"):
        live.client.post("/v1/chat/completions", json={**body, "n": 4}, timeout=0.05)
    wait_until(lambda: live.free)
    assert live.ask().status_code == 200
