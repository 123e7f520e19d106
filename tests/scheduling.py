"""What the tests of many requests at once share: models of three families, mixed requests, drafters, a constraint."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from reference_data import MediaCase, load_multimodal

from gemma4_core import Answer, DrafterBackend, LoadedModel, Request, Scheduler, hookimpl, load_pretrained, registry
from gemma4_core.contracts.rows import Rows
from gemma4_core.contracts.steps import DecoderView, Slots
from gemma4_core.processing.inputs import PreparedInputs

FAMILIES = {
    "e2b-mm": ("image", "short_audio", "touching"),
    "odd-moe": ("image", "two_images"),
    "dense-mm": ("image", "touching"),
}
"""Models with towers, and prompts with media for each: two with images, and one with sound where there is a tower."""
KEYWORDS = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")
CONTEXT = 400
"""Positions of a slot: rings hold fewer, so that they wrap."""
Options = Mapping[str, Any]


@lru_cache
def model(name: str, kernels: str = "") -> LoadedModel:
    """A tiny model in fp32 on the CPU."""
    place = TemporaryDirectory(prefix="gemma4-scheduling-")
    atexit.register(place.cleanup)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA4_KERNELS", kernels)
        return load_pretrained(load_multimodal(name).folder(Path(place.name) / name), device="cpu", dtype="float32")


def with_media(name: str, case: str) -> Options:
    """The first row of a reference prompt with its media, as options of a request."""
    found: MediaCase = load_multimodal(name).cases[case]
    features = {key: getattr(found, key) for key in KEYWORDS if getattr(found, key) is not None}
    return {"prompt": PreparedInputs([int(i) for i in found.ids[0]], features)}


def ordinary(name: str) -> list[int]:
    """Ids that are no placeholders."""
    config = model(name).config
    soft = {config.image_token_id, config.audio_token_id, config.video_token_id, config.text_config.pad_token_id}
    return [i for i in range(3, config.text_config.usable_ids) if i not in soft]


def mixed(name: str, count: int, seed: int = 1, media: bool = True) -> list[dict[str, Any]]:
    """Options of requests of every sort: lengths, seeds, penalties, biases, stop ids, media."""
    rng = np.random.default_rng(seed)
    ids = ordinary(name)
    made: list[dict[str, Any]] = [dict(with_media(name, case)) for case in FAMILIES[name]] if media else []
    lengths = [300, *rng.integers(1, 60, count).tolist()]
    while len(made) < count:
        made.append({"prompt_tokens": rng.choice(ids, lengths[len(made) % len(lengths)]).tolist()})
    kinds: list[Callable[[], Options]] = [
        dict,
        lambda: {"temperature": 0.8, "top_k": 20},
        lambda: {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.3},
        lambda: {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        lambda: {"temperature": 1.2, "min_p": 0.05, "logit_bias": dict.fromkeys(rng.choice(ids, 5).tolist(), 4.0)},
        lambda: {"stop_ids": rng.choice(ids, 40).tolist()},
    ]
    for number, options in enumerate(made):
        options |= {"seed": number, "max_new_tokens": int(rng.integers(3, 16)), "stop_ids": (),
                    **kinds[number % len(kinds)]()}
    return made


def alone(model: LoadedModel, options: Options) -> list[int]:
    """The ids of a request's answer by itself, from an empty cache."""
    given = dict(options)
    for name in ("salt", "adapter", "n", "deadline", "stop"):
        given.pop(name, None)
    prompt = given.pop("prompt", None)
    ids, features = (given.pop("prompt_tokens"), {}) if prompt is None else (prompt.input_ids, prompt.features)
    return list(model.generate(ids, **given, **features))


def drain(scheduler: Scheduler, steps: int = 100_000) -> None:
    """Step until there is nothing left to do."""
    for _ in range(steps):
        if scheduler.idle:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")


def answers(model: LoadedModel, requests: Sequence[Options], parallel: int = 4, **settings: Any) -> list[Answer]:
    """Their answers from one scheduler."""
    with Scheduler(model, parallel, **{"context": CONTEXT} | settings) as scheduler:
        running = [scheduler.submit(Request(**options)) for options in requests]
        drain(scheduler)
        assert scheduler.stats().slots_used == 0
    for one in running:
        assert one.done and one.answer.error is None, one.answer.error
    return [one.answer for one in running]


# --------------------------------------------------------------------------------------------------- drafters


class Scripted:
    """Proposes what a function of the ids so far says."""

    needs_hidden = False

    def __init__(self, slots: Slots, script: Callable[[list[int], int], list[int]]) -> None:
        self.slots, self.script = slots, script

    def propose(self, rows: Rows, hidden: object, k: int) -> np.ndarray:
        made = np.full((rows.count, k), -1, np.int32)
        for row, (slot, newest) in enumerate(zip(rows.slot.tolist(), np.asarray(rows.ids).tolist(), strict=True)):
            found = self.script([*self.slots.tokens(slot), newest], k)[:k]
            made[row, : len(found)] = found
        return made


@contextmanager
def drafter(name: str, script: Callable[[list[int], int], list[int]]) -> Iterator[None]:
    """A drafter of this name, for a while."""

    class Plugin:
        @hookimpl
        def gemma4_drafters(self) -> list[DrafterBackend]:
            def build(target: DecoderView, slots: Slots, values: Options) -> Scripted:
                return Scripted(slots, script)

            return [DrafterBackend(name, "for tests", build, matches=lambda context: False)]

    registry.register(Plugin(), name)
    try:
        yield
    finally:
        registry.unregister(name)


# -------------------------------------------------------------------------------------------------- constraint


class Residues:
    """Allows ids whose remainder is the count of ids so far, by turns: a set that changes with every id."""

    def __init__(self, vocabulary: int, modulus: int = 5) -> None:
        self.vocabulary, self.modulus, self.taken = vocabulary, modulus, []  # type: ignore[var-annotated]
        self.most = 0

    def mask(self) -> np.ndarray:
        remainder = (sum(self.taken) + len(self.taken)) % self.modulus
        allowed = np.arange(-(-self.vocabulary // 32) * 32) % self.modulus == remainder
        return (allowed.reshape(-1, 32) * (np.uint32(1) << np.arange(32, dtype=np.uint32))).sum(1).astype(np.uint32)

    def advance(self, token: int) -> None:
        assert self.mask()[token // 32] >> np.uint32(token % 32) & 1
        self.taken.append(token)
        self.most = max(self.most, len(self.taken))

    def rollback(self, tokens: int) -> None:
        assert 0 < tokens <= len(self.taken)
        del self.taken[len(self.taken) - tokens :]

    def forced(self) -> list[int]:
        return []
