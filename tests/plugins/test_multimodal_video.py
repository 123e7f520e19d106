"""Video prompts against transformers, with the package in plugins/gemma4-video."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from reference_data import DATA, load_multimodal, relative_error

from gemma4_core import load_pretrained, registry

pytestmark = pytest.mark.usefixtures("plain_loops")

SOURCE = Path(__file__).parents[2] / "plugins" / "gemma4-video" / "src"
KEYWORDS = ("pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids")


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[Any]:
    """The package, registered by hand where it is not installed."""
    sys.path.insert(0, str(SOURCE))
    import gemma4_video

    installed = "video" in registry.modalities
    if not installed:
        registry.register(gemma4_video, "video-under-test")
    yield gemma4_video
    sys.path.remove(str(SOURCE))
    if not installed:
        registry.unregister("video-under-test")


def test_indices_and_expansions_equal_the_reference() -> None:
    from gemma4_video.sampling import DEFAULT_FPS, expansion, sample_indices

    for facts in json.loads((DATA / "video.json").read_text()):
        if "indices" not in facts:
            continue  # the reference refuses videos of fewer frames than it wants; here they give all they have
        indices = sample_indices(facts["frames"], 32)
        assert indices == facts["indices"]
        rate = facts["fps"] or DEFAULT_FPS
        assert expansion([i / rate for i in indices], [2] * len(indices)) == facts["text"]


@pytest.mark.parametrize(("name", "case"), [("dense-mm", "video"), ("odd-e2b", "image_and_video")])
def test_logits(name: str, case: str) -> None:
    reference = load_multimodal(name)
    facts = reference.cases[case]
    model = load_pretrained(reference.folder(Path(mkdtemp()) / name), device="cpu", dtype="float32")
    assert {"vision", "video"} <= set(model.towers) and model.towers["video"].parameters() == {}
    media = {key: getattr(facts, key) for key in KEYWORDS if getattr(facts, key) is not None}
    if case == "video":
        assert facts.vision_soft is not None
        frames = model.towers["video"].encode(media, capture=True)
        assert relative_error(np.concatenate([f.numpy() for f in frames]), facts.vision_soft) < 1e-4
    logits, _ = model.forward_ids(facts.ids, cache=model.make_cache(), **media)
    assert relative_error(logits.numpy(), facts.logits) < 1e-4
    greedy = list(model.generate(facts.ids[0].tolist(), max_new_tokens=8, stop_ids=(), **media))
    assert greedy == facts.greedy[0].tolist()
