"""``/v1/completions``, llama.cpp's ``/completion``, and the routes about tokens."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from serve_tools import Live, demo_model

TEXT = "Once upon a time"


@pytest.fixture
def openai(live: Live) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{live.url}/v1", max_retries=0)


def test_texts_and_ids_are_continued(openai: OpenAI) -> None:
    ids = demo_model().processor.prepare_inputs(TEXT).input_ids
    alone = "".join(part.text for part in demo_model().stream_generate(TEXT, 6))
    for prompt in (TEXT, ids, [TEXT], [ids, TEXT]):
        found = openai.completions.create(model="demo", prompt=prompt, max_tokens=6, temperature=0)  # type: ignore[arg-type]
        assert {choice.text for choice in found.choices} == {alone}
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.usage is not None and found.usage.completion_tokens == 12


def test_a_stream_of_several_prompts_says_the_same(openai: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": [TEXT, "The cat"], "max_tokens": 8, "temperature": 0, "n": 2}
    whole = openai.completions.create(**asked)
    pieces: dict[int, str] = {}
    for chunk in openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            pieces[choice.index] = pieces.get(choice.index, "") + choice.text
    assert pieces == {choice.index: choice.text for choice in whole.choices} and len(pieces) == 4
    assert chunk.usage == whole.usage


def test_a_prompt_is_scored_as_it_is(live: Live) -> None:
    body = {"prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 2}
    found = live.post("/v1/completions", body).json()
    told = found["choices"][0]["logprobs"]
    ids = demo_model().processor.prepare_inputs(TEXT).input_ids
    logits, _ = demo_model().forward_ids(ids)
    values = logits[0].log_softmax(-1).numpy()
    assert found["choices"][0]["text"] == TEXT and found["usage"]["completion_tokens"] == 0
    assert told["token_logprobs"][0] is None and len(told["tokens"]) == len(ids) == len(told["text_offset"])
    expected = [values[i, token] for i, token in enumerate(ids[1:])]
    assert told["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
    assert all(len(top) == 2 for top in told["top_logprobs"][1:])
    more = live.post("/v1/completions", {**body, "max_tokens": 3, "temperature": 0}).json()["choices"][0]
    assert more["text"].startswith(TEXT) and len(more["logprobs"]["tokens"]) == len(ids) + 3


@pytest.mark.parametrize(("change", "words"), [
    ({"prompt": None}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [""]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"), ({"prompt": ["a"] * 65}, "prompt"), ({"prompt": ["a"] * 8, "n": 9}, "64"),
    ({"prompt": [99999999]}, "99999999"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"top_k": -1}, "top_k"), ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"suffix": "a"}, "suffix"), ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"), ({"best_of": 3}, "best_of"), ({"max_tokens": 0}, "max_tokens"),
    ({"prompt": "word " * 400}, "context"), ({"echo": 1}, "echo"), ({"prompt": "<|image|>"}, "image"),
])
def test_what_cannot_be_continued_is_told(live: Live, change: dict[str, Any], words: str) -> None:
    """Among others llama.cpp CVE-2026-21869: no negative number of a body reaches arithmetic."""
    answer = live.post("/v1/completions", {"prompt": TEXT, "max_tokens": 2, **change})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert live.free


def test_llamas_own_form(live: Live) -> None:
    body = {"prompt": TEXT, "n_predict": 6, "temperature": 0}
    whole = live.post("/completion", body).json()
    pieces = live.events("/completions", {**body, "stream": True})
    assert "".join(piece["content"] for piece in pieces) == whole["content"] and pieces[-1]["stop"] is True
    assert whole["stop_type"] == "limit" and whole["tokens_predicted"] == 6 and whole["timings"]["predicted_n"] == 6
    assert live.post("/completion", {**body, "prompt": ["a", "b"]}).status_code == 400


def test_tokens_and_texts(live: Live) -> None:
    text = "What is the capital of France ? 媽 🤗"
    tokens = live.post("/tokenize", {"content": text}).json()["tokens"]
    assert tokens == demo_model().tokenizer.encode(text)
    assert live.post("/detokenize", {"tokens": tokens}).json()["content"] == text
    begun = live.post("/tokenize", {"content": text, "add_special": True}).json()["tokens"]
    assert begun == [demo_model().config.bos_token_id, *tokens]
    pieces = live.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == tokens and all(piece["piece"] for piece in pieces)
    spelt = live.post("/tokenize", {"content": "<turn|>", "parse_special": False}).json()["tokens"]
    assert len(spelt) > 1 == len(live.post("/tokenize", {"content": "<turn|>"}).json()["tokens"])
    counted = live.post("/v1/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert counted["tokens"] == begun and counted["count"] == len(begun) == len(counted["token_strs"])
    messages = {"messages": [{"role": "user", "content": "<turn|> hello"}]}
    asked = live.post("/tokenize", messages).json()["count"]
    assert asked == live.post("/v1/chat/completions/input_tokens", messages).json()["input_tokens"]
    assert "hello" in live.post("/apply-template", messages).json()["prompt"]
    assert live.post("/detokenize", {"tokens": []}).json()["content"] == ""
    for path, wrong in (("/tokenize", {"content": 5}), ("/detokenize", {"tokens": ["a"]}), ("/detokenize", {}),
                        ("/detokenize", {"tokens": [99999999]}), ("/tokenize", {"messages": 5})):
        assert live.post(path, wrong).status_code == 400


def test_texts_become_vectors(live: Live, openai: OpenAI) -> None:
    found = openai.embeddings.create(model="demo", input=["the cat", "the dog"])
    expected = demo_model().embed(["the cat", "the dog"])
    for item, vector in zip(found.data, expected, strict=True):
        assert item.embedding == pytest.approx(vector.tolist(), abs=1e-4)
    plain = live.post("/v1/embeddings", {"input": "the cat"}).json()
    assert plain["data"][0]["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-4)
    assert plain["usage"]["prompt_tokens"] == len(demo_model().processor.prepare_inputs("the cat").input_ids)
    for wrong in ({"input": ""}, {"input": [1]}, {"input": ["a"] * 65}, {"input": "a", "dimensions": 3},
                  {"input": "a", "encoding_format": "x"}, {"input": "word " * 400}):
        assert live.post("/v1/embeddings", wrong).status_code == 400


def test_what_is_measured(live: Live) -> None:
    live.ask(max_tokens=4, ignore_eos=True)
    text = live.client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["gemma4:generation_tokens_total"]) >= 4 and float(values["gemma4:prompt_tokens_total"]) > 0
    assert float(values["gemma4:num_requests_running"]) == 0
    assert float(values['gemma4:request_success_total{finished_reason="length"}']) >= 1
    assert float(values["gemma4:inter_token_latency_seconds_count"]) >= 3
    assert float(values['gemma4:time_to_first_token_seconds_bucket{le="+Inf"}']) >= 1
