"""Lines of ``gemma4 batch``: what they may hold, what is said of the others, and what becomes of answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from batch_tools import batch, question, write_lines
from cli_tools import STATS, failure

from gemma4_core.config import GenerationConfig
from gemma4_core.generation.answers import Answer
from gemma4_plugins.commands.batch import input_rows as lines_module
from gemma4_plugins.commands.batch.bodies import answered, failed
from gemma4_plugins.commands.batch.input_rows import NEUTRAL, Batch, Defaults, Fault, Row, read, seed_of

DEFAULTS = Defaults({"max_new_tokens": 1024, "stop": (), "logit_bias": (), "ignore_eos": False})
HELLO = [{"role": "user", "content": "Hello"}]


def row(line: Any, defaults: Defaults = DEFAULTS) -> Row:
    found = read(3, line.encode() if isinstance(line, str) else json.dumps(line).encode(), defaults)
    assert isinstance(found, Row), found
    return found


@pytest.mark.parametrize(("line", "id", "kind", "prompt"), [
    (question("a"), "a", "messages", question("a")["body"]["messages"]),
    ({"custom_id": "a", "body": {"messages": HELLO}}, "a", "messages", HELLO),
    ({"messages": HELLO}, "3", "messages", HELLO),
    ({"prompt": "Hello", "id": 7}, "7", "prompt", "Hello"),
    ({"text": "Once", "custom_id": "x", "temperature": None}, "x", "text", "Once"),
])
def test_forms(line: Any, id: str, kind: str, prompt: Any) -> None:
    found = row(line)
    assert (found.number, found.id, found.kind, found.prompt) == (3, id, kind, prompt)


def test_parameters_become_options_of_the_request() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    found = row({"prompt": "Hi", "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
                 "n": 2, "stop": "END", "seed": 4, "presence_penalty": 1, "frequency_penalty": -1,
                 "repetition_penalty": 1.1, "logit_bias": {"5": -100}, "logprobs": True, "top_logprobs": 3,
                 "ignore_eos": True, "tools": tools, "tool_choice": "auto", "user": "somebody", "stream": False,
                 "response_format": {"type": "text"}, "reasoning_effort": "none", "model": "gpt"})
    request = found.request(DEFAULTS, NEUTRAL, True)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert sampling.seed == 4
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty)
    assert penalties == (1, -1, 1.1)
    assert (request.max_new_tokens, request.n, request.stop, request.ignore_eos) == (5, 2, ("END",), True)
    assert (request.logit_bias, request.top_logprobs, found.logprobs) == ({5: -100.0}, 3, True)
    assert request.tools and request.tools[0]["function"]["name"] == "look" and not request.thinking
    assert row({"prompt": "Hi", "tools": tools, "tool_choice": "none"}).request(DEFAULTS, NEUTRAL, True).tools is None
    assert row({"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": True}}).request(
        DEFAULTS, NEUTRAL, True).thinking
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
    assert row({"prompt": "Hi", "response_format": schema}).asked["constraint"] == {"json_schema": {"type": "array"}}


def test_options_of_the_command_hold_where_a_line_says_nothing() -> None:
    defaults = Defaults(DEFAULTS.values | {"temperature": 0.3, "seed": 9, "stop": ("x",), "draft": "lookup",
                                           "logit_bias": ((5, 1.0),)}, thinking=True)
    request = row({"prompt": "Hi"}).request(defaults, NEUTRAL, True)
    assert (request.sampling.temperature, request.sampling.seed, request.stop) == (0.3, 9, ("x",))
    assert (request.thinking, request.draft, request.logit_bias) == (True, "lookup", {5: 1.0})
    request = row({"prompt": "Hi", "temperature": 0, "seed": 1, "thinking": False}).request(defaults, NEUTRAL, True)
    assert (request.sampling.temperature, request.sampling.seed, request.thinking) == (0, 1, False)
    samples = GenerationConfig((1,), 0, 2, do_sample=True, temperature=0.8, top_k=64)
    request = row({"prompt": "Hi", "top_k": 5}).request(DEFAULTS, samples, True)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.8, 5)


def test_a_prompt_goes_through_the_template_and_a_text_does_not() -> None:
    user = [{"role": "user", "content": "Hi"}]
    prompt, text = row({"prompt": "Hi"}), row({"text": "Hi"})
    assert prompt.request(DEFAULTS, NEUTRAL, True).messages == user
    assert prompt.request(DEFAULTS, NEUTRAL, False).prompt == "Hi"
    assert prompt.request(Defaults(DEFAULTS.values, raw=True), NEUTRAL, True).prompt == "Hi"
    assert text.request(DEFAULTS, NEUTRAL, True).prompt == "Hi"


def test_a_seed_comes_from_the_id() -> None:
    one, two = (row({"prompt": "Hi", "id": id}).request(DEFAULTS, NEUTRAL, True).sampling.seed for id in ("a", "b"))
    assert one == seed_of("a") == 0xCA978112 and one != two


def test_media_parts_are_known() -> None:
    pixel = "data:image/png;base64," + base64.b64encode(b"png").decode()
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": pixel}},
             {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}]
    assert row({"messages": [{"role": "user", "content": parts}]}).prompt[0]["content"] == parts


@pytest.mark.parametrize(("line", "words"), [
    ("{", "not valid JSON"), ("[1]", "expected an object"), ('{"prompt": NaN}', "NaN is not a JSON number"),
    (b'{"prompt": "\xff"}', "not UTF-8 text"), ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    ("[" * 100 + "]" * 100, "nested more than 64 deep"),
    ({}, "there is no prompt"), ({"id": "a"}, "there is no prompt"), ({"prompt": None}, "there is no prompt"),
    ({"prompt": "a", "text": "b"}, "prompt and text are given"),
    ({"prompt": ["a"]}, 'prompt ["a"]: must be text'), ({"text": " "}, "the prompt is empty"),
    ({"messages": []}, "expected a list of"), ({"messages": "Hi"}, "expected a list of"),
    ({"messages": [{"role": "usr", "content": "Hi"}]}, 'has role "usr"'),
    ({"messages": [{"role": "user", "content": 5}]}, "content is a int"),
    ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "smell"),
    ({"prompt": "a", "temprature": 1}, "unknown parameter \"temprature\", did you mean 'temperature'"),
    ({"prompt": "a", "max_tokens": 5, "max_completion_tokens": 5}, "mean the same"),
    ({"prompt": "a", "max_tokens": "5"}, 'max_tokens "5": must be a whole number from 1'),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens 0: must be"), ({"prompt": "a", "top_k": 1.5}, "top_k 1.5: must be"),
    ({"prompt": "a", "temperature": -1}, "temperature -1: must be a number from 0"),
    ({"prompt": "a", "temperature": True}, "temperature true: must be a number"),
    ({"prompt": "a", "top_p": 2}, "top_p 2"), ({"prompt": "a", "presence_penalty": 3}, "presence_penalty 3"),
    ({"prompt": "a", "n": 0}, "n 0: must be"), ({"prompt": "a", "seed": -1}, "seed -1: must be"),
    ({"prompt": "a", "stop": ""}, 'stop "": must be'), ({"prompt": "a", "stop": ["x", 1]}, "stop"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, 'logit_bias: "x" is not a token id'),
    ({"prompt": "a", "logit_bias": {"1": "x"}}, 'logit_bias 1: "x" is not a number'),
    ({"prompt": "a", "logprobs": 1}, "logprobs 1: must be true or false"),
    ({"prompt": "a", "top_logprobs": 21}, "top_logprobs 21"),
    ({"prompt": "a", "tools": [{}]}, "tools[0] lacks function"),
    ({"prompt": "a", "tool_choice": "required"}, "no such tool is declared"),
    ({"prompt": "a", "stream": True}, "stream"),
    ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format"),
    ({"prompt": "a", "id": ""}, 'id "": must be text'), ({"prompt": "a", "id": 1.5}, "id 1.5: must be text"),
    ({"prompt": "a", "id": "a", "custom_id": "b"}, "custom_id and id are given"),
    ({"custom_id": "a", "body": []}, "body []: must be an object"),
    ({"custom_id": "a", "body": {"prompt": "a"}, "temperature": 1}, '"temperature" beside body: it belongs into body'),
    ({"custom_id": "a", "body": {"prompt": "a"}, "method": "GET"}, 'method "GET": must be POST'),
    ({"custom_id": "a", "body": {"prompt": "a"}, "url": "/v1/embeddings"}, 'url "/v1/embeddings": must be /v1/chat'),
])
def test_faults(line: Any, words: str) -> None:
    data = line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode()
    found = read(12, data, DEFAULTS)
    assert isinstance(found, Fault) and found.message.startswith("line 12: ") and words in found.message, found
    assert found.message.isprintable() and len(found.message) <= 400
    assert found.code == ("invalid_request" if isinstance(line, dict) else "invalid_json")


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\n  \n{"prompt": "b"}')
    assert Batch.scanned(tmp_path / "in.jsonl", DEFAULTS).ids == {"1": 1, "4": 4}


def test_a_line_without_end_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LINE_LIMIT", 1 << 10)
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b" * 5000}, {"prompt": "c"}])
    found = Batch.scanned(tmp_path / "in.jsonl", DEFAULTS)
    assert (list(found.ids), found.bad, found.faults[0].number) == (["1", "2", "3"], 1, 2)


@pytest.mark.parametrize(("lines", "words"), [
    ([], "holds no lines"), (["", " "], "holds no lines"),
    (["{", {"prompt": 5}], "none of 2 lines can be used: line 1: not valid JSON"),
    ([{"prompt": "a", "id": "x"}, {"prompt": "b"}, {"prompt": "c", "id": "x"}],
     'lines 1 and 3 have the id "x"; give each line an id of its own'),
    ([{"prompt": "a", "id": "2"}, {"prompt": "b"}], 'lines 1 and 2 have the id "2"'),
    ([{"prompt": "a", "id": "x"}] * 4, "and 2 more lines repeat one"),
])
def test_inputs_that_are_refused_before_anything_is_loaded(
    lines: list[Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma4_core.loading.load_pretrained", None)
    source = write_lines(tmp_path / "in.jsonl", lines)
    line = failure("batch", "-m", "demo", "-i", source, "-o", tmp_path / "out.jsonl")
    assert words in line and str(source) in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    given = ("batch", "-m", "demo", "-o", tmp_path / "out.jsonl", "-i")
    assert "No such file" in failure(*given, tmp_path / "absent.jsonl")
    assert "not a regular file" in failure(*given, tmp_path)
    assert "not a regular file" in failure(*given, "/dev/stdin")
    write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    assert "unknown --draft 'x'" in batch(tmp_path, "--draft", "x").err
    assert "nowhere" in batch(tmp_path, "-m", "nowhere").err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


class Letters:
    """A tokenizer of letters, whose id 256 is half of a character."""

    def stream(self, skip_special: bool = False) -> Any:
        return self

    def add(self, token: int) -> str:
        return "" if token == 256 else chr(token)

    def flush(self) -> str:
        return "\N{REPLACEMENT CHARACTER}"

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_row_of_answers() -> None:
    calls = [{"name": "look", "arguments": {"where": "hér"}}]
    tops = [[(72, -0.5)], [], []]
    one = Answer("", "Hm.", calls, [72, 256, 73], [-0.5, -1.0, float("-inf")], tops, "tool_call", STATS)
    two = Answer("Hi", tokens=[72, 73], logprobs=[-1, -2], finish_reason="length", stats=STATS, choice=1)
    made = answered("a", [one, two], True, "demo", 5, Letters())  # type: ignore[arg-type]
    assert made == answered("a", [one, two], True, "demo", 5, Letters())  # type: ignore[arg-type]
    body = made["response"]["body"]
    assert (made["custom_id"], made["error"], made["response"]["status_code"]) == ("a", None, 200)
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 5, "demo")
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    first, second = body["choices"]
    assert (first["index"], first["finish_reason"], first["message"]["content"]) == (0, "tool_calls", None)
    assert first["message"]["reasoning_content"] == "Hm."
    [call] = first["message"]["tool_calls"]
    assert (call["type"], call["function"]) == ("function", {"name": "look", "arguments": '{"where": "hér"}'})
    told = first["logprobs"]["content"]
    assert [token["token"] for token in told] == ["H", "", "I\N{REPLACEMENT CHARACTER}"]
    assert [token["logprob"] for token in told] == [-0.5, -1.0, -9999.0]
    assert told[0]["top_logprobs"] == [{"token": "H", "logprob": -0.5, "bytes": [72]}]
    assert second["message"] == {"role": "assistant", "content": "Hi"} and second["finish_reason"] == "length"
    bad = failed("a", "invalid_request", "line 1: no")
    assert bad["id"] == made["id"] and bad["response"] is None
    assert bad["error"] == {"code": "invalid_request", "message": "line 1: no"}
