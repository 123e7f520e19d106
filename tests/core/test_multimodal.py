"""Towers, final logits and generation with media, against transformers, in every way to run them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from reference_data import MediaCase, load_multimodal, relative_error
from training_tools import short

from gemma4_core import GemmaModel, InputError, load_pretrained
from gemma4_core.model.media import place

pytestmark = pytest.mark.usefixtures("plain_loops")

TOLERANCE = 1e-4
KEYWORDS = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")
LOGITS = {
    "e2b-mm": ("image", "two_images", "batch", "audio", "short_audio", "two_clips", "image_and_audio"),
    "dense-mm": ("image", "long_image", "touching"),
    "odd-e2b": ("two_images", "two_clips", "image_and_audio"),
    "odd-moe": ("long_image", "two_images", "batch"),
}
TOWERS = {"e2b-mm": ("two_images", "two_clips"), "dense-mm": ("long_image",), "odd-e2b": ("two_images", "short_audio"),
          "odd-moe": ("two_images",)}
"""Each of these is one more compilation. Videos are tested with the package that reads them."""


def pairs(cases: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(name, case) for name, found in cases.items() for case in found]


@lru_cache
def model(name: str) -> GemmaModel:
    folder = load_multimodal(name).folder(Path(mkdtemp()) / name)
    return load_pretrained(folder, device="cpu", dtype="float32")


def case_of(name: str, case: str) -> MediaCase:
    return load_multimodal(name).cases[case]


def media(case: MediaCase) -> dict[str, Any]:
    return {name: getattr(case, name) for name in KEYWORDS if getattr(case, name) is not None}


@pytest.mark.parametrize(("name", "case"), pairs(TOWERS))
def test_tower_outputs(name: str, case: str) -> None:
    reference = case_of(name, case)
    for tower, expected in (("vision", reference.vision_soft), ("audio", reference.audio_soft)):
        if expected is None:
            continue
        encoded = model(name).towers[tower].encode(media(reference), capture=True)
        together = np.concatenate([tokens.numpy() for tokens in encoded])
        assert relative_error(together, expected) < TOLERANCE
        again = model(name).towers[tower].encode(media(reference), capture=True)
        assert [a is b for a, b in zip(encoded, again, strict=True)] == [True] * len(encoded)
        assert len(model(name).towers[tower].digests(media(reference))) == len(encoded)


@pytest.mark.parametrize(("name", "case"), pairs(LOGITS))
def test_logits_with_a_cache(name: str, case: str) -> None:
    reference = case_of(name, case)
    if len(reference.ids) > 1:
        reference = first_row(name, reference)
    logits, cache = model(name).forward_ids(reference.ids, cache=model(name).make_cache(), **media(reference))
    assert cache is not None and cache.length == reference.ids.shape[1]
    assert relative_error(logits.numpy(), reference.logits) < TOLERANCE


def first_row(name: str, case: MediaCase) -> MediaCase:
    """Row 0 of a batch with its own media, which come first: one in these cases."""
    kept = {key: getattr(case, key)[:1] for key in KEYWORDS if getattr(case, key) is not None}
    return MediaCase(**{**vars(case), **kept, "ids": case.ids[:1], "logits": case.logits[:1]})


@pytest.mark.parametrize(
    ("name", "case"), [("dense-mm", "touching"), ("odd-moe", "batch"), ("odd-e2b", "audio_batch")]
)
def test_logits_without_a_cache(name: str, case: str) -> None:
    reference = case_of(name, case)
    logits, cache = model(name).forward_ids(reference.ids.tolist(), **media(reference))
    assert cache is None
    assert relative_error(logits.numpy(), reference.logits) < TOLERANCE


@pytest.mark.parametrize(("name", "case"), [("dense-mm", "two_images"), ("odd-e2b", "two_clips")])
def test_media_in_several_calls(name: str, case: str) -> None:
    """One medium a call, with the cache between them."""
    reference = case_of(name, case)
    config, ids = model(name).config, reference.ids[0].tolist()
    soft = {config.image_token_id, config.audio_token_id}
    cut = next(i for i in range(ids.index(next(t for t in ids if t in soft)), len(ids)) if ids[i] not in soft) + 1
    cache, parts = model(name).make_cache(), []
    for row, piece in ((0, ids[:cut]), (1, ids[cut:])):
        features = {key: value[row : row + 1] for key, value in media(reference).items()}
        parts.append(model(name).forward_ids(piece, cache=cache, **features)[0].numpy())
    assert relative_error(np.concatenate(parts, 1), reference.logits) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "case"), [("e2b-mm", "image_and_audio"), ("dense-mm", "long_image"), ("odd-moe", "image")]
)
def test_greedy_tokens(name: str, case: str) -> None:
    reference = case_of(name, case)
    tokens = list(model(name).generate(reference.ids[0].tolist(), max_new_tokens=8, stop_ids=(), **media(reference)))
    assert tokens == reference.greedy[0].tolist()
    times = place(model(name), reference.ids[:1], media(reference), capture=True).times
    if reference.input_features_mask is not None:
        assert times["audio"].unit == "second"
        assert times["audio"].amount == pytest.approx(reference.input_features_mask.sum() / 100)
    vision = times["vision"]
    assert (vision.amount, vision.unit) == (len(reference.pixel_values), "image")
    assert vision.seconds_each == vision.seconds / len(reference.pixel_values) > 0


def test_gradients_reach_the_towers() -> None:
    reference, ours = case_of("e2b-mm", "image_and_audio"), short("e2b-mm")
    wanted = {
        "vision": "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight",
        "audio": "model.audio_tower.layers.0.self_attn.relative_k_proj.weight",
    }
    for name, weight in wanted.items():
        tower = ours.towers[name]
        tokens = tower.encode(media(reference))[0]
        gradient = tokens.square().mean().gradient(tower.parameters()[weight])[0].numpy()
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_changed_weights_are_seen() -> None:
    reference = case_of("odd-moe", "image")
    ours = load_pretrained(load_multimodal("odd-moe").folder(Path(mkdtemp()) / "odd"), device="cpu", dtype="float32")
    tower = ours.towers["vision"]
    before = tower.encode(media(reference), capture=True)[0].numpy()
    weight = tower.parameters()["model.embed_vision.embedding_projection.weight"]
    weight.assign(weight * 2).realize()
    tower.forget()
    assert np.allclose(tower.encode(media(reference), capture=True)[0].numpy(), 2 * before, rtol=1e-4)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"pixel_values": "all"}, "image_position_ids is missing"),
        ({"image_position_ids": "all"}, "image_position_ids was given without pixel_values"),
        ({"pixel_values": np.zeros((1, 9, 5)), "image_position_ids": "all"}, r"pixel_values: shape \[1, 9, 5\]"),
        ({"pixel_values": "all", "image_position_ids": np.zeros((1, 9, 3), int)}, "image_position_ids: shape"),
        ({"pixel_values": "all", "image_position_ids": "far"}, "99999 is not below the 128 positions"),
        ({"pixel_values": "all", "image_position_ids": "none"}, "an image has no patches"),
        ({"pixel_values": "all", "image_position_ids": "equal"}, "patches fall into one soft token"),
        ({"input_features": np.zeros((1, 40, 7), np.float32)}, r"input_features: shape \[1, 40, 7\]"),
        ({"input_features": np.zeros((1, 8, 128)), "input_features_mask": np.zeros((1, 8), bool)}, "no valid frame"),
        ({"input_features": np.zeros((1, 8, 128)), "input_features_mask": np.arange(8)[None] == 5}, "every 4th"),
        ({"depth": np.zeros(3)}, "depth: no loaded modality takes it"),
        ({}, "take 0"),
    ],
)
def test_features_that_do_not_fit(features: dict[str, Any], said: str) -> None:
    reference = case_of("e2b-mm", "image")
    assert reference.image_position_ids is not None
    far = np.where(reference.image_position_ids == 1, 99_999, reference.image_position_ids)
    odd = {"far": far, "none": np.full_like(far, -1), "equal": np.zeros_like(far)}
    given = {
        key: getattr(reference, key) if isinstance(value, str) and value == "all" else odd.get(value, value)
        if isinstance(value, str) else value
        for key, value in features.items()
    }
    with pytest.raises(InputError, match=said) as error:
        model("e2b-mm").forward_ids(reference.ids, **given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
