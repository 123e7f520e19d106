"""Adapters chosen by request: one in force at a time, each answer that of its adapter alone."""

from __future__ import annotations

import pytest
from gemma4_lora import Adapters
from lora_tools import HERE, tiny

from gemma4_core import InputError, LoadedModel, Request, Scheduler

PROMPTS = ([5, 9, 200, 17], [5, 9, 200, 17, 33, 41], [101, 7])
NEW = 6


def alone(model: LoadedModel, adapter: str | None) -> list[list[int]]:
    """The answers to all prompts with one adapter, one after the other."""
    return [list(model.generate(prompt, NEW, adapter=adapter, ignore_eos=True)) for prompt in PROMPTS]


def test_each_answer_is_that_of_its_adapter_alone() -> None:
    model = tiny("dense")
    adapters = Adapters.of(model)
    adapters.load("theirs", HERE / "dense")
    wanted = {name: alone(model, name) for name in (None, "theirs")}
    assert wanted[None] != wanted["theirs"] and not adapters.active
    requests = [
        (name, number, Request(prompt_tokens=prompt, max_new_tokens=NEW, adapter=name, ignore_eos=True))
        for number, prompt in enumerate(PROMPTS) for name in (None, "theirs")
    ]
    with Scheduler(model, parallel=2, context=64) as scheduler:
        running = [(name, number, scheduler.submit(request)) for name, number, request in requests]
        while not scheduler.idle:
            scheduler.step()
    for name, number, one in running:
        assert one.answer.error is None and one.answer.tokens == wanted[name][number]
    assert not adapters.active


def test_what_was_in_force_is_put_back() -> None:
    model = tiny("dense")
    adapters = Adapters.of(model)
    adapters.load("theirs", HERE / "dense")
    adapters.activate("theirs", strength=0.5)
    before = alone(model, None)
    full = alone(model, "theirs")
    assert full != before and adapters.active == {"theirs": 0.5}
    assert alone(model, None) == before


def test_an_adapter_that_is_not_loaded_fails_alone() -> None:
    model = tiny("dense")
    Adapters.of(model).load("poet", HERE / "dense")
    bad, good = model.answer_all(
        [Request(prompt_tokens=[5], max_new_tokens=2, adapter="pot"), Request(prompt_tokens=[5], max_new_tokens=2)],
        context=32,
    )
    assert good[1].error is None and "'poet'" in str(bad[1].error) and '"pot"' in str(bad[1].error)
    with pytest.raises(InputError, match="pot"):
        model.generate([5], 2, adapter="pot")
