"""A second round of any mixture captures and compiles nothing, and memory is flat."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scheduling import CONTEXT, answers, model, ordinary
from tinygrad.device import Compiler
from tinygrad.helpers import GlobalCounters

from gemma4_core import LoadedModel, Request, Scheduler, load_pretrained
from gemma4_core.ops.graphs import CapturedGraph

pytestmark = pytest.mark.usefixtures("plain_loops")
ALL = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "logit_bias": {11: 2.0}}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was captured and compiled since."""
    found: list[str] = []
    capture, compile_cached = CapturedGraph.__init__, Compiler.compile_cached

    def captured(self: CapturedGraph, function: Any, store: Any = None, key: Any = None) -> None:
        found.append(f"captured {key}")
        capture(self, function, store, key)

    def compiled(self: Compiler, source: str) -> bytes:
        found.append("compiled")
        return compile_cached(self, source)

    monkeypatch.setattr(CapturedGraph, "__init__", captured)
    monkeypatch.setattr(Compiler, "compile_cached", compiled)
    yield found


def requests(name: str, count: int, seed: int, **options: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"prompt_tokens": rng.choice(ordinary(name), int(rng.integers(1, 30))).tolist(), "seed": number,
             "stop_ids": (), "max_new_tokens": int(rng.integers(2, 9)), **(options if number % 2 else {})}
            for number in range(count)]


@pytest.mark.slow
def test_a_second_round_of_any_mixture_captures_and_compiles_nothing(made: list[str]) -> None:
    ours = model("e2b-mm")
    for parallel in (1, 5, 16):
        answers(ours, requests("e2b-mm", 20, 1, **ALL), parallel)
    answers(ours, [], 2)  # a scheduler of another size allocates and clears its slots, no more
    made.clear()
    for parallel in (16, 1, 5, 2):
        answers(ours, requests("e2b-mm", 20, parallel + 2, **ALL), parallel)
    assert made == []


@pytest.mark.slow
def test_portable_rows_of_any_number_are_captured_by_powers_of_two(made: list[str]) -> None:
    portable = model("dense-mm", "portable")
    answers(portable, requests("dense-mm", 8, 1), 4)
    rows = {key for key in made if key.startswith("captured ('rows'")}
    assert {key.split(",")[1].strip() for key in rows} <= {"2", "4"}
    made.clear()
    answers(portable, requests("dense-mm", 7, 2), 4)
    assert made == []


# ------------------------------------------------------------------------------------------- hundreds of requests


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    """The model that ships with the package."""
    return load_pretrained(Path(str(files("gemma4_core") / "data" / "demo")), device="cpu", dtype="float32",
                           modalities=("text",))


def test_hundreds_of_requests_lose_no_slot_and_no_memory(demo: LoadedModel) -> None:
    rng, ids = np.random.default_rng(3), ordinary_of(demo)
    kinds = [{"prompt_tokens": rng.choice(ids, int(rng.integers(1, 60))).tolist(), "seed": number,
              "max_new_tokens": int(rng.integers(1, 9)), "temperature": float(number % 2)} for number in range(16)]
    alone = [list(demo.generate(options["prompt_tokens"], options["max_new_tokens"], seed=options["seed"],
                                temperature=options["temperature"])) for options in kinds]
    sizes, cancelled = [], 0
    with Scheduler(demo, 6, 128) as scheduler:
        for _ in range(4):
            running = []
            while len(running) < 40 or not scheduler.idle:
                if len(running) < 40 and rng.random() < 0.7:
                    which = int(rng.integers(len(kinds)))
                    running.append((which, scheduler.submit(Request(**kinds[which]))))
                if running and rng.random() < 0.25:
                    running[int(rng.integers(len(running)))][1].cancel()
                scheduler.step()
            for which, one in running:
                assert one.done and one.answer.error is None
                whole, ended = alone[which], one.answer.finish_reason == "cancelled"
                assert one.answer.tokens == (whole[: len(one.answer.tokens)] if ended else whole)
                cancelled += ended
            assert scheduler.stats().slots_used == 0 and scheduler.stats().running == 0
            gc.collect()
            sizes.append(GlobalCounters.mem_used)
    assert cancelled > 5 and sizes[-1] == sizes[1]


def ordinary_of(model: LoadedModel) -> list[int]:
    special = {*model.tokenizer.special_tokens.values(), *model.stop_ids}
    return [i for i in range(model.config.text_config.usable_ids) if i not in special]


def test_slots_that_a_scheduler_gave_back_serve_the_next_one(made: list[str]) -> None:
    ours = model("e2b-mm")
    first = Scheduler(ours, 2, CONTEXT)
    slots = first._slots
    first.close()
    made.clear()
    with Scheduler(ours, 2, CONTEXT) as second:
        assert second._slots is slots and second.stats().slots_used == 0
    assert made == []
