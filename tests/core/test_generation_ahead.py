"""A device whose steps are queued before earlier tokens are read: same tokens, right order, a cache that can go on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from reference_data import load
from tinygrad import Tensor

from gemma4_core import GemmaCache, load_pretrained
from gemma4_core.engine.engine import Engine
from gemma4_core.generation.tokens import Generation, Sampling, check_prompt, run
from gemma4_core.model import GemmaModel
from gemma4_core.model.cache import Storage

AHEAD, NEW = 2, 10


class Result(tuple[Tensor, Tensor]):
    """What a queued step leaves."""

    log: list[tuple[str, int]]
    position: int

    def read(self) -> tuple[int, float]:
        self.log.append(("read", self.position))
        return int(self[0].item()), float(self[1].item())


class Queued:
    """The portable step as a device that runs ahead shows it."""

    ahead = AHEAD

    def __init__(self, engine: Engine, storage: Storage, log: list[tuple[str, int]]) -> None:
        self.inner, self.log = engine.portable_step(storage, False), log

    def __call__(self, token: Tensor, position: int, state: Any) -> Result:
        self.log.append(("issue", position))
        result = Result(t.clone().realize() for t in self.inner(token, position, state))
        result.log, result.position = self.log, position
        return result


@pytest.fixture(scope="module")
def log() -> list[tuple[str, int]]:
    return []


@pytest.fixture(scope="module")
def plain() -> GemmaModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", "portable")
        return load_pretrained(load("e2b").folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def queued(log: list[tuple[str, int]]) -> GemmaModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", "portable")
        model = load_pretrained(load("e2b").folder, device="cpu", dtype="float32")
    model.operations = dataclasses.replace(
        model.operations, decode_step=lambda view, storage, sampled: Queued(model.engine, storage, log), run_ahead=AHEAD
    )
    return model


def answer(
    model: GemmaModel, prompt: list[int], stops: tuple[int, ...] = (), cache: GemmaCache | None = None
) -> tuple[list[int], Generation]:
    progress = Generation()
    checked = check_prompt(model, prompt, NEW, cache, {})
    tokens = [t.id for t in run(model.engine, checked, Sampling(), stops, progress)]
    return tokens, progress


def prompt() -> list[int]:
    return [int(i) for i in load("e2b").ids[0]][:9]


def test_steps_are_issued_ahead_and_read_in_order(
    plain: GemmaModel, queued: GemmaModel, log: list[tuple[str, int]]
) -> None:
    log.clear()
    assert answer(queued, prompt())[0] == answer(plain, prompt())[0]
    positions = list(range(len(prompt()), len(prompt()) + NEW - 1))
    assert [p for kind, p in log if kind == "issue"] == positions  # not one too many
    assert [p for kind, p in log if kind == "read"] == positions
    assert log[: AHEAD + 2] == [*(("issue", p) for p in positions[: AHEAD + 1]), ("read", positions[0])]


def test_steps_queued_beyond_a_stop_leave_nothing_behind(plain: GemmaModel, queued: GemmaModel) -> None:
    whole = answer(plain, prompt())[0]
    stop = next(token for i, token in enumerate(whole) if i > 1 and token not in whole[:i])
    cache = queued.make_cache()
    tokens, progress = answer(queued, prompt(), (stop,), cache)
    assert tokens == whole[: whole.index(stop)] and progress.finish_reason == "stop"
    assert cache.length == len(prompt()) + len(tokens)
    longer = [*prompt(), *tokens, 7, 8, 9]
    again, progress = answer(queued, longer, (), cache)
    assert progress.reused_tokens == len(prompt()) + len(tokens)
    assert again == answer(plain, longer)[0]
