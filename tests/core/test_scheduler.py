"""Many requests at once: every answer is the one that it would be alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scheduling import CONTEXT, FAMILIES, alone, answers, drain, mixed, model
from tiny_model import write_tiny_checkpoint

from gemma4_core import LoadedModel, Request, Scheduler, load_pretrained

pytestmark = pytest.mark.usefixtures("plain_loops")
COUNT = 20
FULL = [("e2b-mm", 5), ("odd-moe", 2)]
"""Family and number at a time, as far as every run has time for."""


@lru_cache
def expected(name: str) -> list[list[int]]:
    return [alone(model(name), options) for options in mixed(name, COUNT)]


@pytest.mark.parametrize(
    ("name", "parallel"),
    [pytest.param(name, count, marks=[] if (name, count) in FULL else pytest.mark.slow)
     for name in FAMILIES for count in (1, 2, 5, 16)],
)
def test_each_answer_in_company_is_that_of_generate_alone(name: str, parallel: int) -> None:
    order = np.random.default_rng(parallel).permutation(COUNT).tolist()
    requests = mixed(name, COUNT)
    found = answers(model(name), [requests[i] for i in order], parallel)
    assert [answer.tokens for answer in found] == [expected(name)[i] for i in order]
    assert {answer.finish_reason for answer in found} == {"length", "stop"}
    assert all(len(answer.logprobs) == len(answer.tokens) for answer in found)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "e2b-mm" else pytest.mark.slow) for name in FAMILIES]
)
def test_random_cancels_touch_no_other_answer(name: str) -> None:
    rng = np.random.default_rng(7)
    requests = mixed(name, COUNT)
    with Scheduler(model(name), 5, CONTEXT) as scheduler:
        running = [scheduler.submit(Request(**requests[i])) for i in rng.permutation(COUNT)]
        while not scheduler.idle:
            if rng.random() < 0.3:
                running[int(rng.integers(COUNT))].cancel()
            scheduler.step()
        assert scheduler.stats().slots_used == 0
    whole = {id(options["prompt"]) if "prompt" in options else tuple(options["prompt_tokens"]): tokens
             for options, tokens in zip(requests, expected(name), strict=True)}
    ended = 0
    for one in running:
        key = id(one.request.prompt) if one.request.prompt is not None else tuple(one.request.prompt_tokens or ())
        if one.answer.finish_reason == "cancelled":
            assert one.cancelled and one.answer.tokens == whole[key][: len(one.answer.tokens)]
            ended += 1
        else:
            assert one.answer.tokens == whole[key]
    assert 0 < ended < COUNT


@pytest.mark.parametrize("name", ["e2b-mm"])
def test_requests_that_come_later_join_those_that_run(name: str) -> None:
    requests = mixed(name, COUNT)
    with Scheduler(model(name), 3, CONTEXT) as scheduler:
        running = []
        for options in requests:
            running.append(scheduler.submit(Request(**options)))
            scheduler.step()
        drain(scheduler)
    assert [one.answer.tokens for one in running] == expected(name)


# ---------------------------------------------------------------------------------------------------- portable


@pytest.mark.slow
def test_portable_rows_of_several_slots_give_the_answers_of_one() -> None:
    name = "e2b-mm"
    portable = model(name, "portable")
    requests = [options for options in mixed(name, COUNT) if len(options.get("prompt_tokens", [0] * 99)) < 32][:4]
    found = answers(portable, requests, 4)
    with Scheduler(portable, 1, CONTEXT) as scheduler:
        again = [scheduler.submit(Request(**options)) for options in requests]
        drain(scheduler)
    assert [answer.tokens for answer in found] == [one.answer.tokens for one in again]
    assert [answer.tokens for answer in found] == [alone(model(name), options) for options in requests]


# -------------------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model with a tokenizer."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", towers=False)
    return load_pretrained(folder, device="cpu", dtype="float32")


def test_stop_strings_end_one_answer_and_leave_nothing_of_themselves(talking: LoadedModel) -> None:
    prompts = ["Once upon", "A list: 1, 2", "Hello there, you", "x = [", "The end of it", "And so on"]
    whole = ["".join(part.text for part in talking.stream_generate(prompt, 24, temperature=1.0, seed=3))
             for prompt in prompts]
    stops = [text[6:9] for text in whole]
    options = [{"prompt": prompt, "max_new_tokens": 24, "temperature": 1.0, "seed": 3, "stop": stop}
               for prompt, stop in zip(prompts, stops, strict=True)]
    parts = [[*talking.stream_generate(**{"prompt_or_messages" if k == "prompt" else k: v for k, v in one.items()})]
             for one in options]
    found = answers(talking, options, 4)
    assert [answer.text for answer in found] == ["".join(part.text for part in one) for one in parts]
    assert [answer.tokens for answer in found] == [[p.token for p in one if p.token is not None] for one in parts]
    assert all(answer.text == text[: text.index(stop)] for answer, text, stop in zip(found, whole, stops, strict=True))
    assert {answer.finish_reason for answer in found} == {"stop"}


def test_answers_come_as_they_finish_with_the_number_of_their_request(talking: LoadedModel, tmp_path: Path) -> None:
    requests = [Request(prompt_tokens=[2, 7], max_new_tokens=count, ignore_eos=True) for count in (20, 2, 9)]
    found = list(talking.answer_all([*requests, "raw text", [{"role": "user", "content": "Hi"}],
                                     {"prompt": "no request"}, Request(prompt_tokens=[10**6])], parallel=3, context=64))
    numbers = [number for number, _ in found]
    assert sorted(numbers) == list(range(7)) and numbers.index(1) < numbers.index(2) < numbers.index(0)
    by_number = dict(found)
    assert [len(by_number[i].tokens) for i in range(3)] == [20, 2, 9]
    assert by_number[3].error is None and by_number[4].error is None and by_number[4].text is not None
    assert by_number[5].error is not None and "1000000" in str(by_number[6].error)
    tokens = list(talking.generate([2, 7], 20, ignore_eos=True))
    assert by_number[0].tokens == tokens and by_number[2].tokens == tokens[:9]
