"""The token loop: reuse of caches and graphs, sampling, limits, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_data import load
from tinygrad import Tensor, TinyJit

from gemma4_core import Gemma4Error, GemmaCache, load_pretrained
from gemma4_core.engine.sequence import Sequence
from gemma4_core.generation.sampling import Sampling
from gemma4_core.generation.tokens import check_prompt, run
from gemma4_core.model import GemmaModel
from gemma4_core.ops.sampling import IN_PROMPT, SamplingTensors, sample

pytestmark = pytest.mark.usefixtures("plain_loops")
NEW = 12


@lru_cache
def model(kernels: str = "") -> GemmaModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", kernels)
        return load_pretrained(load("e2b").folder, device="cpu", dtype="float32")


@pytest.fixture(params=["", "portable"])
def either(request: pytest.FixtureRequest) -> GemmaModel:
    return model(str(request.param))


def ids(row: int = 0) -> list[int]:
    return [int(i) for i in load("e2b").ids[row]]


def answer(
    model: GemmaModel, prompt: list[int], cache: GemmaCache | None = None, **options: Any
) -> tuple[list[int], Sequence]:
    checked = check_prompt(model, prompt, NEW, cache, {}, Sampling(**options).choices())
    tokens = [token.id for token in run(model.engine, checked)]
    return tokens, checked.sequence


def test_a_second_call_captures_and_compiles_nothing(either: GemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = answer(either, ids()[:9])[0]
    answer(either, ids()[:9], temperature=1.0, top_p=0.9, seed=1)
    from tinygrad.device import Compiler

    def refuse(*_: object, **__: object) -> bytes:
        raise AssertionError("compiled something")

    captured = []
    original = TinyJit.__call__
    monkeypatch.setattr(Compiler, "compile_cached", refuse)
    monkeypatch.setattr(TinyJit, "__call__", lambda jit, *a, **k: (captured.append(jit.cnt), original(jit, *a, **k))[1])
    assert answer(either, ids()[:9])[0] == first
    assert len(answer(either, ids(1), temperature=0.7, top_k=5, seed=2)[0]) == NEW
    assert all(count >= 2 for count in captured)


def test_continuing_equals_a_cold_start(either: GemmaModel) -> None:
    cache = either.make_cache()
    prompt, before = ids()[:21], 0
    for turn in range(3):  # the window is far exceeded
        expected, _ = answer(either, prompt)
        tokens, sequence = answer(either, prompt, cache)
        assert tokens == expected
        assert sequence.reused == (0 if turn == 0 else before + NEW - 1)
        before = len(prompt)
        prompt = [*prompt, *tokens, *ids(1)[turn * 5 : turn * 5 + 5]]


@pytest.mark.parametrize("shared", [3, 20, 34, 39])
def test_a_partly_shared_prompt_equals_a_cold_start(either: GemmaModel, shared: int) -> None:
    cache = either.make_cache()
    answer(either, ids(), cache)
    other = [*ids()[:shared], *ids(1)[shared:]]
    assert answer(either, other, cache)[0] == answer(either, other)[0]


def test_the_same_prompt_again_reuses_all_but_its_last_token() -> None:
    cache = model().make_cache()
    first, _ = answer(model(), ids(), cache)
    second, sequence = answer(model(), ids(), cache)
    assert second == first and sequence.reused == len(ids()) - 1


def test_a_cache_grows_with_its_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(model(), ids())[0]
    monkeypatch.setattr("gemma4_core.model.cache.CAPACITY_STEPS", (16, 40, 64))
    cache = model().make_cache()
    for count in (10, 30, 40):
        tokens, _ = answer(model(), ids()[:count], cache)
    assert tokens == expected


def test_seeds_repeat_and_differ(either: GemmaModel) -> None:
    def draw(seed: int) -> list[int]:
        return answer(either, ids(), temperature=1.5, seed=seed)[0]

    assert draw(5) == draw(5)
    assert len({tuple(draw(seed)) for seed in range(6)}) > 3


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}])
def test_narrow_sampling_is_greedy(options: dict[str, Any]) -> None:
    assert answer(model(), ids(), **{"temperature": 1.0, "seed": 1, **options})[0] == answer(model(), ids())[0]


DRAWN = 50
"""Tokens that are drawn at once."""


@TinyJit
def draw(logits: Tensor, params: Tensor, counts: Tensor, seed: Tensor) -> Tensor:
    return sample(logits, SamplingTensors(params, seed, counts), Tensor([3] * DRAWN))[0].realize()


def draws(probabilities: list[float], count: int = 100, seen: tuple[int, ...] = (), **options: float) -> np.ndarray:
    """Tokens drawn with different seeds from five probabilities."""
    names = {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence": 0.0,
             "frequency": 0.0} | options
    arrays = (
        np.log(np.array([probabilities], np.float32)),
        np.array([list(names.values())], np.float32),
        np.isin(np.arange(5), seen)[None].astype(np.int32) * IN_PROMPT,
    )
    fixed = [Tensor(np.repeat(array, DRAWN, 0)).contiguous().realize() for array in arrays]
    seeds = np.arange(count, dtype=np.uint32).reshape(-1, DRAWN)
    return np.concatenate([draw(*fixed, Tensor(some).contiguous().realize()).numpy() for some in seeds])


def test_sampled_frequencies_follow_the_distribution(cpu: str) -> None:
    wanted = [0.45, 0.3, 0.15, 0.06, 0.04]
    share = np.bincount(draws(wanted, 1000), minlength=5) / 1000
    assert np.abs(share - wanted).max() < 0.06


def test_cuts_keep_what_they_should(cpu: str) -> None:
    logits = [0.4, 0.3, 0.2, 0.06, 0.04]
    assert set(draws(logits, top_k=2)) == {0, 1}
    assert set(draws(logits, top_p=0.75)) == {0, 1, 2}
    assert set(draws(logits, top_p=0.65)) == {0, 1}
    assert set(draws(logits, min_p=0.4)) == {0, 1, 2}
    assert set(draws(logits, temperature=0.0)) == {0}
    assert set(draws(logits, temperature=0.0, seen=(0,), repetition_penalty=2.0)) == {1}


def test_limits() -> None:
    assert list(model().generate(ids(), max_new_tokens=0)) == []
    small = load_pretrained(load("e2b").folder, device="cpu", dtype="float32", max_context=45)
    assert len(list(small.generate(ids(), stop_ids=()))) == 45 - 40 + 1
    with pytest.raises(Gemma4Error, match="40 tokens, 3 more than the context of 37"):
        small.generate(ids(), cache=small.make_cache(37))


def test_stop_ids_end_and_are_not_yielded() -> None:
    tokens = answer(model(), ids())[0]
    stop = tokens[4]
    assert list(model().generate(ids(), NEW, stop_ids=[stop])) == tokens[: tokens.index(stop)]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ([], "empty"),
        ([1, -3], "-3"),
        ([1, 10**6], "1000000"),
        ([1.5], "1.5"),
        ([float("nan")], "nan"),
        ([True], "True"),
        ([[1, 2], [3]], "differ"),
        ("abc", "abc"),
        ([[1], [2]], "one row"),
    ],
)
def test_bad_ids_are_refused_at_once(bad: Any, named: str) -> None:
    with pytest.raises(Gemma4Error) as error:
        model().generate(bad, 3)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"seed": -1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {10**6: 1.0}},
        {"logit_bias": [1]},
        {"num_draft_tokens": 0},
        {"max_new_tokens": -1},
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(Gemma4Error) as error:
        model().generate(ids(), **{"max_new_tokens": 3, **options})
    assert next(iter(options)) in str(error.value)


FORK = """
import os, sys
sys.path.insert(0, {tests!r})
from reference_data import load
from gemma4_core import load_pretrained
model = load_pretrained(load("e2b").folder, device="cpu", dtype="float32", modalities=["text"])
prompt = load("e2b").ids[0].tolist()
answer = lambda: list(model.generate(prompt, 6, stop_ids=()))
expected = answer()
child = os.fork()
if child == 0:
    os._exit(0 if answer() == expected else 1)
assert os.waitpid(child, 0)[1] == 0 and answer() == expected
"""


def test_a_forked_child_answers_too() -> None:
    code = FORK.format(tests=str(Path(__file__).parents[1]))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    environment = {**os.environ, "GEMMA4_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
