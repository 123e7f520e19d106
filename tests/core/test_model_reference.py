"""The text decoder against transformers, for all families and every way to run it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from reference_data import TEXT_FAMILIES, load, mean_kl, relative_error, write_seed
from tinygrad.helpers import Context

from gemma4_core import load_pretrained
from gemma4_core.model import GemmaModel

TOLERANCE = 1e-4
KL_BOUND = {"e2b": 1.35, "moe": 1.6, "dense": 1.25}


@lru_cache
def model(name: str, kernels: str = "") -> GemmaModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", kernels)
        return load_pretrained(load(name).folder, device="cpu", dtype="float32")


@pytest.fixture(params=TEXT_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.usefixtures("plain_loops")
def test_full_forward_of_a_batch_of_two(family: str) -> None:
    reference = load(family)
    logits, cache = model(family).forward_ids(reference.ids.tolist())
    assert cache is None
    assert logits.shape == reference.logits.shape
    assert relative_error(logits.numpy(), reference.logits) < TOLERANCE


@pytest.mark.parametrize("steps", [[1] * 40, [40], [3, 30, 1, 6]])
def test_cached_runs_equal_the_full_forward(family: str, steps: list[int]) -> None:
    logits = cached_logits(model(family), load(family).ids[0].tolist(), steps)
    assert relative_error(logits, load(family).logits[0]) < TOLERANCE


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "e2b" else pytest.mark.slow) for name in TEXT_FAMILIES]
)
def test_portable_cached_runs_and_greedy_tokens(family: str) -> None:
    reference, portable = load(family), model(family, "portable")
    assert portable.operations.step is None
    logits = cached_logits(portable, reference.ids[0].tolist(), [3, 30, 1, 6])
    assert relative_error(logits, reference.logits[0]) < TOLERANCE
    tokens = list(portable.generate(reference.ids[0].tolist(), max_new_tokens=24, stop_ids=()))
    assert tokens == reference.greedy[0].tolist()


def cached_logits(model: GemmaModel, ids: list[int], steps: list[int]) -> np.ndarray:
    """Logits of ids fed to a cache in pieces of these lengths, the rest in one."""
    cache, parts, at = model.make_cache(), [], 0
    for step in [*steps, len(ids)]:
        if at < len(ids):
            logits, _ = model.forward_ids(ids[at : at + step], cache=cache)
            parts.append(logits.numpy()[0])
            at += step
    assert cache.length == len(ids)
    return np.concatenate(parts)


@pytest.mark.usefixtures("plain_loops")
def test_cached_batch_of_two() -> None:
    family = "e2b"
    reference = load(family)
    cache = model(family).make_cache()
    first, _ = model(family).forward_ids(reference.ids[:, :7], cache=cache)
    second, _ = model(family).forward_ids(reference.ids[:, 7:], cache=cache)
    assert relative_error(np.concatenate([first.numpy(), second.numpy()], 1), reference.logits) < TOLERANCE


def test_greedy_tokens(family: str) -> None:
    reference = load(family)
    for row in range(2):
        tokens = list(model(family).generate(reference.ids[row].tolist(), max_new_tokens=24, stop_ids=()))
        assert tokens == reference.greedy[row].tolist()


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "e2b" else pytest.mark.slow) for name in KL_BOUND]
)
def test_bf16_is_about_as_near_the_truth_as_the_reference(family: str, tmp_path: Path) -> None:
    reference = load(family)
    ours = []
    for seed, prompts in enumerate(reference.kl_ids):
        folder = write_seed(reference.folder, seed, tmp_path / str(seed))
        with Context(NOOPT=1):  # plain loops round alike, and eight models compile in a quarter of the time
            truth, _ = load_pretrained(folder, device="cpu", dtype="float32").forward_ids(prompts)
            logits, _ = load_pretrained(folder, device="cpu").forward_ids(prompts)
            wide, narrow = truth.numpy(), logits.numpy()
        assert relative_error(wide[0], reference.kl_truth[seed]) < TOLERANCE
        ours.append([mean_kl(one, other) for one, other in zip(wide, narrow, strict=True)])
    assert np.mean(ours) <= KL_BOUND[family] * np.mean(reference.kl_reference)
