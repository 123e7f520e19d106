"""Penalties, biases, drafts and log-probabilities as options: what reaches the model, and what is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cli_tools import STATS, FakeModel, failure, gemma4, usage

from gemma4_core.cli.answers import stats_line

ASK = ("generate", "-m", "demo", "--device", "cpu", "--dtype", "float32", "--max-new-tokens", 8)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load(name: str, *, check: Any, **asked: Any) -> FakeModel:
        check(fake.processor)
        return fake

    monkeypatch.setattr("gemma4_core.loading.load_pretrained", load)
    return fake


@pytest.mark.parametrize(("typed", "asked"), [
    ("", {}),
    ("--presence-penalty 0.5 --frequency-penalty -2", {"presence_penalty": 0.5, "frequency_penalty": -2.0}),
    ("--logit-bias 5=-1.5 --logit-bias 7=2", {"logit_bias": {5: -1.5, 7: 2.0}}),
    ("--ignore-eos", {"ignore_eos": True}),
    ("--draft lookup --num-draft-tokens 3", {"draft": "lookup", "num_draft_tokens": 3}),
])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_they_reach_the_model(command: str, typed: str, asked: dict[str, Any], model: FakeModel) -> None:
    given = ("--prompt", "Hi") if command == "generate" else ()
    assert gemma4(command, "-m", "m", *given, *typed.split(), stdin="Hi\n").code == 0
    got = {name: model.asked[0].get(name) for name in asked}
    assert got == asked
    names = ("presence_penalty", "frequency_penalty", "logit_bias", "draft", "num_draft_tokens")
    assert all(model.asked[0].get(name) is None for name in names if name not in asked)


@pytest.mark.parametrize(("typed", "words"), [
    ("--logit-bias 5", "'5' is not an id with a number"), ("--logit-bias x=1", "'x' is not a whole number"),
    ("--logit-bias 5=x", "'x' is not a number"), ("--presence-penalty 2.5", "'2.5' is not a finite number from -2"),
    ("--num-draft-tokens 0", "'0' is not in the range"), ("--top-logprobs 3", "--top-logprobs 3 needs --json"),
    ("--json --top-logprobs 21", "'21' is not in the range"),
])
def test_wrong_values(typed: str, words: str) -> None:
    assert words in usage("generate", "-m", "m", "--prompt", "Hi", *typed.split())


def test_an_unknown_drafter_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma4_core.loading.read_text", None)
    assert "'lookpu', did you mean 'lookup'?" in failure(*ASK, "Hi", "--draft", "lookpu")


def test_a_chat_sets_them(model: FakeModel) -> None:
    lines = "/set logit-bias 5=-2\n/set draft lookup\n/set num-draft-tokens off\n/set ignore-eos on\nHi\n"
    ran = gemma4("chat", "-m", "m", stdin=lines)
    asked = model.asked[0]
    found = (asked["logit_bias"], asked["draft"], asked["num_draft_tokens"], asked["ignore_eos"])
    assert found == ({5: -2.0}, "lookup", 8, True)
    assert ran.err.splitlines()[0].split() == ["logit_bias", "5=-2"]
    assert "did you mean 'lookup'?" in failure("chat", "-m", "m", stdin="/set draft lookpu\n")


def test_drafts_and_log_probabilities_of_the_demo_model() -> None:
    prompt = "1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 1 2 3"
    plain, drafted = (json.loads(gemma4(*ASK, prompt, "--raw", "--ignore-eos", "--json", *more).out)
                      for more in ((), ("--draft", "lookup", "--top-logprobs", 2)))
    assert plain["tokens"] == drafted["tokens"] and len(plain["tokens"]) == 8
    assert "logprobs" not in plain and plain["stats"]["drafted_tokens"] == 0
    assert 0 <= drafted["stats"]["accepted_tokens"] <= drafted["stats"]["drafted_tokens"] > 0
    assert [len(top) for top in drafted["top_logprobs"]] == [2] * 8
    assert [top[0][0] for top in drafted["top_logprobs"]] == drafted["tokens"]
    assert [top[0][1] for top in drafted["top_logprobs"]] == pytest.approx(drafted["logprobs"], abs=1e-4)


def test_statistics_tell_drafts() -> None:
    told = stats_line(replace(STATS, drafted_tokens=12, accepted_tokens=7), "stop")
    assert "drafts 7 of 12 tokens accepted" in told and "drafts" not in stats_line(STATS, "stop")
