"""Logits processors: what they are given, and what becomes of what they return, in ids and in text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma4_core import InputError, LoadedModel, Request, load_pretrained

PROMPT = "The hungry cat"
LENGTH: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_pretrained("demo", device="cpu", dtype="float32", modalities=("text",))


@pytest.fixture(scope="module")
def ids(model: LoadedModel) -> list[int]:
    return model.processor.prepare_inputs(PROMPT).input_ids


def without(token: int) -> Any:
    def ban(so_far: list[int], logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[token] = -np.inf
        return logits

    return ban


def test_they_see_ids_and_logits_and_have_the_last_word(model: LoadedModel, ids: list[int]) -> None:
    first = next(model.generate(ids, **LENGTH))
    seen: list[tuple[list[int], np.ndarray]] = []

    def watching(so_far: list[int], logits: np.ndarray) -> np.ndarray:
        seen.append((list(so_far), logits))
        return without(first)(so_far, logits)

    found = list(model.generate(ids, logits_processor=watching, **LENGTH))
    assert len(found) == 6 and first not in found
    assert [so_far for so_far, _ in seen] == [ids + found[:number] for number in range(6)]
    expected = model.forward_ids(ids, cache=model.make_cache())[0].numpy()[0, -1]
    assert seen[0][1].shape == expected.shape and seen[0][1].dtype == np.float32
    np.testing.assert_allclose(seen[0][1], expected, atol=1e-4)
    parts = list(model.stream_generate(PROMPT, logits_processor=without(first), **LENGTH))
    assert [part.token for part in parts if part.token is not None] == found
    assert parts[-1].finish_reason == "length"


def test_several_run_one_after_another(model: LoadedModel, ids: list[int]) -> None:
    first = next(model.generate(ids, **LENGTH))

    def only(so_far: list[int], logits: np.ndarray) -> np.ndarray:
        assert logits[first] == -np.inf
        return np.where(np.arange(len(logits)) == first, 0.0, -np.inf)

    assert list(model.generate(ids, logits_processor=[without(first), only], **LENGTH)) == [first] * 6


def test_one_that_changes_nothing_changes_nothing(model: LoadedModel, ids: list[int]) -> None:
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}):
        given: dict[str, Any] = LENGTH | options
        same = list(model.generate(ids, logits_processor=lambda _, logits: logits, **given))
        assert same == list(model.generate(ids, **given))


@pytest.mark.parametrize(("bad", "says"), [
    (lambda _, logits: logits[:3], r"shape \[3\], not \[768\]"),
    (lambda _, logits: 1 / 0, "ZeroDivisionError"),
    (lambda _, logits: None, "shape"),
    (lambda _, logits: np.full_like(logits, np.nan), "NaN"),
])  # fmt: skip
def test_what_they_return_is_checked(model: LoadedModel, ids: list[int], bad: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"logits_processor .*{says}"):
        list(model.generate(ids, logits_processor=bad, **LENGTH))
    with pytest.raises(InputError, match=f"logits_processor .*{says}"):
        list(model.stream_generate(PROMPT, logits_processor=bad, **LENGTH))


def test_in_company_one_that_fails_ends_its_answer_alone(model: LoadedModel, ids: list[int]) -> None:
    alone = list(model.generate(ids, **LENGTH))
    processors = (None, without(alone[0]), lambda _, logits: logits[:3], None)
    requests = [Request(prompt_tokens=ids, logits_processor=one, **LENGTH) for one in processors]
    found = dict(model.answer_all(requests, parallel=4, context=64))
    assert found[0].tokens == found[3].tokens == alone
    assert found[1].tokens == list(model.generate(ids, logits_processor=processors[1], **LENGTH))
    assert found[2].finish_reason == "cancelled" and "shape" in (found[2].error or "")


def test_what_is_no_processor(model: LoadedModel, ids: list[int]) -> None:
    with pytest.raises(InputError, match="must be a callable of ids and logits"):
        model.generate(ids, logits_processor=["top"])  # type: ignore[list-item]
