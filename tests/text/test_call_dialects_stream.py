"""Recovered calls through ``stream_generate``: which tools, which token, stop strings, finish reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gemma4_core import GemmaModel, load_pretrained
from gemma4_core.engine.sequence import Token
from gemma4_core.generation import stream
from gemma4_core.generation.parts import Part
from gemma4_core.generation.tokens import CheckedPrompt

TOOLS = [{"name": "get", "inputSchema": {"type": "object"}}]
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model() -> GemmaModel:
    return load_pretrained("demo")


@pytest.fixture
def scripted(model: GemmaModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parts of an answer that is given as text, ended by a stop token or by the budget."""

    def answer(text: str, reason: str = "stop", **asked: Any) -> list[Part]:
        ids = model.tokenizer.encode(text)

        def run(engine: Any, prompt: CheckedPrompt) -> Iterator[Token]:
            for token in ids:
                yield Token(token, -1.0)
            prompt.sequence.finish_reason = reason

        monkeypatch.setattr(stream, "run", run)
        parts = list(model.stream_generate(MESSAGES, **{"tools": TOOLS, **asked}))
        given = [part.token for part in parts if part.token is not None]
        assert given == ids[: len(given)] and (asked.get("stop") or given == ids)
        return parts

    return answer


def outcome(parts: list[Part]) -> tuple[str, list[Any], str | None]:
    calls = [dict(part.tool_call) for part in parts if part.tool_call is not None]
    return "".join(part.text for part in parts if part.kind == "text"), calls, parts[-1].finish_reason


CALL = {"name": "get", "arguments": {"city": "Oslo"}}


def test_call_dialects_are_calls_of_the_stream(scripted) -> None:
    assert outcome(scripted("See:\nget(city='Oslo')")) == ("See:\n", [CALL], "tool_call")
    assert outcome(scripted('call:get{"city": "Oslo"}<tool_call|>')) == ("", [CALL], "tool_call")


def test_call_dialects_need_offered_tools(scripted) -> None:
    assert outcome(scripted("get(city='Oslo')", tools=None)) == ("get(city='Oslo')", [], "stop")


def test_a_budget_that_ends_inside_a_call_leaves_its_text(scripted) -> None:
    for start in ("", "<|tool_call>"):
        text = "call:get{city:\"Os"
        assert outcome(scripted(start + text, "length")) == (text, [], "length")
    assert outcome(scripted("call:get{city:Oslo}", "length")) == ("", [CALL], "length")


def test_a_recovered_call_carries_the_token_that_completed_it(scripted, model: GemmaModel) -> None:
    [part] = [part for part in scripted("call:get{city:Oslo} so") if part.tool_call is not None]
    assert part.token is not None and "}" in model.tokenizer.decode([part.token])


def test_stop_strings_still_end_the_answer(scripted) -> None:
    assert outcome(scripted("Yes. END get(city='Oslo')", stop=["END"])) == ("Yes. ", [], "stop")
    assert outcome(scripted("call:get{city:Oslo}a END b", stop=["END"])) == ("a ", [CALL], "tool_call")
    assert outcome(scripted("get(no END x) y", stop=["END"])) == ("get(no ", [], "stop")


def test_what_a_stop_string_holds_back_comes_before_the_call(scripted) -> None:
    parts = [part for part in scripted("Hi\ncall:get{city:Oslo}", stop=["\n\n"]) if part.text]
    assert ["call" if part.tool_call else part.text for part in parts][-2:] == ["\n", "call"]
