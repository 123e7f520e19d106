"""Beginnings that prompts share: a restored one gives a cold start's ids, and what differs is never taken for equal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scheduling import CONTEXT, FAMILIES, alone, drain, model, ordinary, with_media

from gemma4_core import Answer, Request, Scheduler
from gemma4_core.processing.inputs import PreparedInputs

pytestmark = pytest.mark.usefixtures("plain_loops")
LENGTH = 60


def tokens(name: str, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).choice(ordinary(name), count).tolist()


def one(scheduler: Scheduler, **options: Any) -> Answer:
    """The answer to one request, run by itself."""
    running = scheduler.submit(Request(**{"max_new_tokens": 6, "stop_ids": (), "seed": 1} | options))
    drain(scheduler)
    assert running.answer.error is None, running.answer.error
    return running.answer


def reused(answer: Answer) -> int:
    assert answer.stats is not None
    return answer.stats.reused_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_another_conversations_slot_gives_a_cold_starts_ids(name: str) -> None:
    ours, shared = model(name), tokens(name, LENGTH, 1)
    with Scheduler(ours, 3, CONTEXT) as scheduler:
        for turn in range(4):
            prompt = [*shared, *tokens(name, 5 + turn, turn + 2)]
            answer = one(scheduler, prompt_tokens=prompt)
            expected = alone(ours, {"prompt_tokens": prompt, "max_new_tokens": 6, "stop_ids": (), "seed": 1})
            assert answer.tokens == expected
            assert reused(answer) == (LENGTH if turn else 0)
        assert (scheduler.stats().prefix_hits, scheduler.stats().prefix_misses) == (3, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_that_come_together_share_a_beginning(name: str) -> None:
    ours, shared = model(name), tokens(name, LENGTH, 1)
    prompts = [[*shared, *tokens(name, 4, seed)] for seed in range(2, 6)]
    same = [prompts[0]] * 2
    with Scheduler(ours, 4, CONTEXT) as scheduler:
        running = [scheduler.submit(Request(prompt_tokens=prompt, max_new_tokens=6, stop_ids=()))
                   for prompt in [*prompts, *same]]
        drain(scheduler)
    expected = [alone(ours, {"prompt_tokens": prompt, "max_new_tokens": 6, "stop_ids": ()})
                for prompt in [*prompts, *same]]
    assert [r.answer.tokens for r in running] == expected
    assert reused(running[-1].answer) == len(prompts[0]) - 1


@pytest.mark.parametrize("length", [40, 300])
def test_a_snapshot_at_a_messages_end_gives_a_cold_starts_ids(length: int) -> None:
    ours = model("e2b-mm")
    end = ours.config.eos_token_ids[0]
    shared = [*[i for i in tokens("e2b-mm", length, 1) if i != end], end]
    with Scheduler(ours, 2, CONTEXT) as scheduler:
        first = one(scheduler, prompt_tokens=[*shared, *tokens("e2b-mm", 9, 2)], max_new_tokens=20)
        assert scheduler.stats().snapshots == 1
        # others take both slots over
        for seed in (5, 6):
            one(scheduler, prompt_tokens=tokens("e2b-mm", length, seed))
        running = [scheduler.submit(Request(prompt_tokens=tokens("e2b-mm", 30, seed), max_new_tokens=3))
                   for seed in (7, 8)]
        drain(scheduler)
        prompt = [*shared, *tokens("e2b-mm", 9, 3)]
        again = one(scheduler, prompt_tokens=prompt)
        assert reused(again) == len(shared) and reused(first) == 0 and all(r.done for r in running)
        assert again.tokens == alone(ours, {"prompt_tokens": prompt, "max_new_tokens": 6, "stop_ids": ()})


def test_a_conversation_goes_on_in_its_slot_beyond_the_rings() -> None:
    ours = model("e2b-mm")
    prompt = tokens("e2b-mm", 250, 1)
    text = {token: -1e6 for token in range(300) if token not in ordinary("e2b-mm")}
    with Scheduler(ours, 1, CONTEXT) as scheduler:
        for turn in range(5):
            options = {"prompt_tokens": prompt, "max_new_tokens": 12, "stop_ids": (), "logit_bias": text, "seed": 1}
            answer, expected = one(scheduler, **options), alone(ours, options)
            assert answer.tokens == expected
            assert (reused(answer) > 200) == (turn > 0)
            prompt = [*prompt, *answer.tokens, *tokens("e2b-mm", 9, turn + 2)]


def test_a_wrapped_slot_that_is_needed_earlier_is_not_taken() -> None:
    ours, length = model("e2b-mm"), CONTEXT - 10
    prompt = tokens("e2b-mm", length, 1)
    with Scheduler(ours, 1, CONTEXT) as scheduler:
        one(scheduler, prompt_tokens=prompt)
        for shared in (20, length - 200, length - 5):
            other = [*prompt[:shared], *tokens("e2b-mm", 7, 3)][:length]
            answer = one(scheduler, prompt_tokens=other)
            assert answer.tokens == alone(ours, {"prompt_tokens": other, "max_new_tokens": 6, "stop_ids": ()})
            one(scheduler, prompt_tokens=prompt)


# ----------------------------------------------------------------------------------------- what is never equal


def changed(prompt: PreparedInputs, **features: np.ndarray) -> PreparedInputs:
    return replace(prompt, features={**prompt.features, **features})


@pytest.mark.parametrize("name", FAMILIES)
def test_another_image_or_the_same_pixels_in_another_shape_never_hits(name: str) -> None:
    ours, prompt = model(name), with_media(name, "image")["prompt"]
    pixels, places = prompt.features["pixel_values"], prompt.features["image_position_ids"]
    other = changed(prompt, pixel_values=1 - pixels)
    # x and y change places: the same patches in another shape, with as many soft tokens
    turned = changed(prompt, image_position_ids=np.where(places >= 0, places[..., ::-1], places))
    soft = next(i for i, token in enumerate(prompt.input_ids) if token == ours.config.image_token_id)
    with Scheduler(ours, 2, CONTEXT) as scheduler:
        for number, given in enumerate((prompt, other, turned, prompt)):
            answer = one(scheduler, prompt=given)
            expected = alone(ours, {"prompt": given, "max_new_tokens": 6, "stop_ids": ()})
            assert answer.tokens == expected
            assert number == 3 or reused(answer) <= soft
        assert number == 3


@pytest.mark.parametrize("key", ["salt", "adapter"])
def test_another_salt_or_adapter_never_hits(key: str) -> None:
    ours, prompt = model("dense-mm"), tokens("dense-mm", LENGTH, 1)
    with Scheduler(ours, 2, CONTEXT) as scheduler:
        found = []
        for value in ("a", "b", "a"):
            running = scheduler.submit(Request(prompt_tokens=prompt, max_new_tokens=3, stop_ids=(), **{key: value}))
            drain(scheduler)
            found.append(running.sequences[0].reused if running.sequences else 0)
        assert found[:2] == [0, 0] and found[2] == (LENGTH - 1 if running.answer.error is None else 0)


def test_changed_weights_never_hit() -> None:
    ours, prompt = model("dense-mm"), tokens("dense-mm", LENGTH, 1)
    with Scheduler(ours, 2, CONTEXT) as scheduler:
        before = one(scheduler, prompt_tokens=prompt)
        ours.invalidate(graphs=False)
        after = one(scheduler, prompt_tokens=prompt)
        assert reused(after) == 0 and after.tokens == before.tokens
        assert reused(one(scheduler, prompt_tokens=prompt)) == LENGTH - 1
