"""Whole answers of a model with random weights: alone, in company, drafted, after thoughts, through the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4
from schema_tools import registered
from schemas import Check, Schemas, draw, requests, run
from tiny_model import write_tiny_checkpoint

from gemma4_core import LoadedModel, Request, Scheduler, load_pretrained

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "a long name of a key": {"enum": ["yes", "no"]}},
    "required": ["name", "a long name of a key"],
}
TOOL = {"name": "get_the_weather", "parameters": PERSON}
pytest.importorskip("jsonschema")


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("schema") / "tiny", towers=False)


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_pretrained(folder, device="cpu", dtype="float32")


def answers(model: LoadedModel, given: list[dict[str, Any]], parallel: int) -> tuple[list[Any], int]:
    """Answers from one scheduler, and its steps."""
    with Scheduler(model, parallel, 1024) as scheduler:
        running = [scheduler.submit(Request(**options)) for options in given]
        while not scheduler.idle:
            scheduler.step()
        return [one.answer for one in running], scheduler.stats().steps


def test_answers_are_the_same_alone_in_company_and_drafted(model: LoadedModel) -> None:
    made: list[dict[str, Any]] = []
    for number in range(3):
        options: dict[str, Any] = {"max_new_tokens": 100, "seed": number, "temperature": float(number % 2)}
        options["thinking"] = number > 1
        if number % 3:
            options |= {"messages": [{"role": "user", "content": "Hi"}], "constraint": {"json_schema": PERSON}}
        else:
            options |= {"prompt": "Hi", "tools": [TOOL], "constraint": {"tools": "required"}}
        options["constraint"]["thinking_budget"] = 5
        made.append(options)
    alone = [answers(model, [options], 1)[0][0] for options in made]
    for found in alone:
        assert found.error is None and found.finish_reason in ("stop", "tool_call")
        values = [call["arguments"] for call in found.tool_calls] or [json.loads(found.text)]
        assert all(len(value["name"]) <= 5 and value["a long name of a key"] in ("yes", "no") for value in values)
    together, _ = answers(model, made, 4)
    drafted, _ = answers(model, [options | {"draft": "lookup"} for options in made], 2)
    for others in (together, drafted):
        assert [other.tokens for other in others] == [one.tokens for one in alone]
        for other, one in zip(others, alone, strict=True):
            assert np.allclose(other.logprobs, one.logprobs, atol=1e-4)


def test_forced_ids_take_no_step_each(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"prompt": "Hi", "max_new_tokens": 150, "constraint": {"json_schema": PERSON}}]
    [quick], steps = answers(model, asked, 1)
    monkeypatch.setattr("gemma4_core.engine.proposals.FORCED", 0)
    [slow], more = answers(model, asked, 1)
    assert quick.tokens == slow.tokens and np.allclose(quick.logprobs, slow.logprobs, atol=1e-4)
    assert more == len(slow.tokens) and steps < 0.7 * more


def test_drawn_answers_to_random_schemas_end_and_fit(model: LoadedModel) -> None:
    source = Schemas(np.random.default_rng(11))
    for kind, made in (
        ("schema", [source.whole() for _ in range(12)]),
        ("tools", [[source.whole(object_only=True)] for _ in range(8)]),
    ):
        check = draw(model, kind, made, 2, 2048)
        assert check.wrong == [] and check.ended == check.answers == 2 * len(made)


def test_answers_to_random_schemas_end_and_fit(model: LoadedModel) -> None:
    source = Schemas(np.random.default_rng(12))
    check, _ = run(model, "schema", [source.whole() for _ in range(3)], 2, 4, 700)
    assert check.wrong == [] and check.answers == 6 and check.ended >= 5


def test_what_does_not_fit_is_found() -> None:
    check = Check()
    for text in ("{}", "1", "{"):
        answer = type("Answer", (), {"text": text, "tokens": [1], "error": None, "finish_reason": "stop"})
        check.take("schema", {"type": "object"}, answer)
    assert check.ended == 3 and len(check.wrong) == 2
    assert len(list(requests("tools", [[{}]], 4, 9, [(True, False)]))) == 4


def test_a_bad_specification_ends_one_request(model: LoadedModel) -> None:
    good = {"prompt": "Hi", "max_new_tokens": 60, "constraint": {"regex": "(yes|no)"}}
    bad = [
        {"prompt": "Hi", "constraint": {"json_schema": {"type": "x"}}},
        {"prompt": "Hi", "constraint": {"tools": {"name": "x"}}, "tools": [TOOL]},
        {"prompt": "Hi", "constraint": {"regex": "a"}, "ignore_eos": True},
    ]
    found, _ = answers(model, [*bad, good], 2)
    assert [one.finish_reason for one in found] == ["cancelled"] * 3 + ["stop"] and found[3].text in ("yes", "no")
    assert all(one.error.startswith("constraint") for one in found[:3])


def test_generate_and_batch_take_a_schema(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(PERSON))
    ran = gemma4("generate", "-m", folder, "--device", "cpu", "Hi", "--schema", file, "-n", 100)
    assert ran.code == 0 and set(json.loads(ran.out)) == set(PERSON["required"])
    rows = [{"prompt": "Hi"}, {"prompt": "Hi", "response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "integer", "maximum": 9, "minimum": 0}}}}]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = gemma4("batch", "-m", folder, "--device", "cpu", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl",
                 "--schema", json.dumps(PERSON), "-n", 100)  # fmt: skip
    assert ran.code == 0, ran.err
    found = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
             for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}  # fmt: skip
    assert set(json.loads(found["1"])) == set(PERSON["required"]) and 0 <= int(found["2"]) <= 9


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"type": "x"}', 'json_schema.type: "x"'),
        ('{"type": ', "not JSON"),
        ("missing.json", "--schema missing.json"),
        ('{"$ref": "http://x/y"}', "nothing is fetched"),
    ],
)
def test_a_bad_schema_fails_before_weights_are_read(folder: Path, value: str, said: str) -> None:
    assert said in failure("generate", "-m", folder, "--device", "cpu", "Hi", "--schema", value)


def test_a_schema_file_must_hold_an_object(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    assert "must be a JSON schema" in failure("generate", "-m", folder, "Hi", "--schema", tmp_path / "list.json")
