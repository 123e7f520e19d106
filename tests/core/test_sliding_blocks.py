"""Attention in blocks against attention over all scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tinygrad import Tensor, dtypes

from gemma4_core.config import parse_config, preset_dict
from gemma4_core.model.spans import FreshSpan
from gemma4_core.ops import differentiable as training
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.multiply import made
from gemma4_core.ops.sliding_blocks import mask_of_blocks

pytestmark = pytest.mark.usefixtures("cpu", "plain_loops")


def sliding(length: int, segments: np.ndarray | None = None) -> KeyValues:
    """A sliding layer's keys and values; 2 rows, 2 key heads, a window of 4."""
    layer = next(x for x in parse_config(preset_dict("tiny-e2b")).text_config.layers if x.window is not None)
    parts = None if segments is None else Tensor(segments)
    span = FreshSpan(length, "CPU", segments=parts)
    return span.extend(replace(layer, window=4), *(random(n, 2, 2, length, 8) for n in (1, 2)))


def random(seed: int, *shape: int) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Tensor(numbers).is_param_(True)


def of_device(a: Tensor, b: Tensor, form: str, wide: bool) -> Tensor:
    """Stands in for a device's products."""
    return made(None, a, b, form, wide)


@pytest.mark.parametrize(("length", "packed", "own"), [(12, False, False), (15, True, False), (21, True, True)])
def test_results_and_gradients_are_those_of_all_scores(length: int, packed: bool, own: bool) -> None:
    segments = np.sort(np.random.default_rng(0).integers(0, 3, (2, length)), 1).astype(np.int32) if packed else None
    attention, found = training.training_operations(of_device if own else None).attention, []
    for band in (4, None):
        kv, q = sliding(length, segments), random(3, 2, length, 4, 8)
        assert kv.band == 4
        out = attention(q, KeyValues(kv.k, kv.v, kv.mask, band=band))
        gradients = (out * random(4, *out.shape).detach()).sum().gradient(q, kv.k, kv.v)
        found.append([x.numpy() for x in (out, *gradients)])
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_each_block_has_its_part_of_the_mask() -> None:
    mask = Tensor(np.random.default_rng(0).integers(0, 2, (9, 9)).astype(np.bool_))
    wide = np.zeros((12, 16), np.bool_)
    wide[:9, 4:13] = mask.numpy()
    found = mask_of_blocks(mask, 4).numpy()
    assert found.shape == (1, 1, 3, 1, 4, 8) and mask.dtype == dtypes.bool
    for block in range(3):
        here = wide[4 * block : 4 * block + 4, 4 * block : 4 * block + 8]
        assert (found[0, 0, block, 0] == here).all()


def test_a_row_with_pictures_that_see_both_ways_is_not_cut() -> None:
    layer = next(x for x in parse_config(preset_dict("tiny-e2b")).text_config.layers if x.window is not None)
    blocks = Tensor(np.full((1, 40), -1, np.int32))
    k = random(1, 1, 1, 40, 8)
    assert FreshSpan(40, "CPU", blocks).extend(layer, k, k).band is None
    assert FreshSpan(40, "CPU").extend(layer, k, k).band == layer.window
