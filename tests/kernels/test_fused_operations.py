"""Operations of training over a device's kernels: gradients against the portable forms, with kernels that stand in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stand_ins import GATED, LOSSES, NORMS, SOFTMAX, taken
from tinygrad import Tensor, dtypes

from gemma4_core.config import parse_config, preset_dict
from gemma4_core.model.spans import FreshSpan
from gemma4_core.ops import portable
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.differentiable import differentiable_operations, training_operations
from gemma4_core.ops.fused import NONE
from gemma4_core.ops.portable import cross_entropy
from gemma4_core.weights import DenseMatrix, Matrix

pytestmark = pytest.mark.usefixtures("cpu")


def draw(seed: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).realize()


def agree(found: list[Tensor], truths: list[Tensor], limit: float = 1e-5) -> None:
    for one, truth in zip(found, truths, strict=True):
        truth_values = truth.numpy()
        assert one.shape == truth.shape and np.abs(truth_values).max() > 0
        assert np.abs(one.numpy() - truth_values).max() < limit * np.abs(truth_values).max()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [16, 12])
def test_norms(weighted: bool, size: int) -> None:
    x, dy, weight = draw(0, 2, 3, size), draw(1, 2, 3, size), draw(2, size) if weighted else None
    results = []
    for operations in (training_operations(None, (), NORMS), portable()):
        made = operations.rms_norm(x, weight, 1e-6)
        wanted = [x] if weight is None else [x, weight]
        results.append([made, *(made * dy).sum().gradient(*wanted)])
    agree(*results)
    assert results[0][0].dtype == dtypes.float32


@pytest.mark.parametrize(
    ("length", "media", "packed"),
    [(6, False, False), (9, True, False), (15, True, True),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in ((9, False, True), (12, False, False), (15, False, True)))],
)
@pytest.mark.parametrize("sliding", [False, True])
def test_attention(length: int, media: bool, packed: bool, sliding: bool) -> None:
    layers = parse_config(preset_dict("tiny-e2b")).text_config.layers
    layer = replace(next(x for x in layers if x.is_full != sliding), **({"window": 4} if sliding else {}))
    random = np.random.default_rng(3)
    blocks = Tensor(np.where(random.random((2, length)) < 0.5, np.arange(length) // 3, -1).astype(np.int32))
    segments = Tensor(np.sort(random.integers(0, 3, (2, length)), 1).astype(np.int32))
    span = FreshSpan(length, "CPU", blocks if media else None, segments if packed else None)
    q, k, v, dy = draw(1, 2, length, 4, 8), draw(2, 2, 2, length, 8), draw(3, 2, 2, length, 8), draw(4, 2, length, 4, 8)
    kv = span.extend(layer, k, v)
    banded = sliding and not media and length >= 12
    taken.clear()
    results = []
    for kernels in (SOFTMAX, NONE):
        made = training_operations(None, (), kernels).attention(q, kv)
        results.append([made, *(made * dy).sum().gradient(q, k, v)])
    agree(*results)
    assert set(taken) == {4 if banded else None}


def test_a_mask_that_follows_no_pattern_is_kept() -> None:
    q, k, mask = draw(1, 1, 6, 2, 8), draw(2, 1, 1, 6, 8), Tensor(np.eye(6, dtype=np.bool_))
    taken.clear()
    kernels = SOFTMAX
    found = training_operations(None, (), kernels).attention(q, KeyValues(k, k, mask))
    agree([found], [portable().attention(q, KeyValues(k, k, mask))])
    assert not taken


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("words", [40, 37])
def test_losses(cap: float | None, words: int) -> None:
    h, head, slopes = draw(0, 6, 16), draw(1, words, 16), draw(2, 6)
    targets = Tensor(np.array([3, -100, 0, words - 1, -1, 9], np.int32))
    results = []
    for kernels in (LOSSES, NONE):
        operations = training_operations(None, (), kernels)
        assert operations.cross_entropy is not None
        made = operations.cross_entropy(h, targets, DenseMatrix(head), cap)
        results.append([made, *(made * slopes).sum().gradient(h, head)])
    agree(*results)
    logits = portable().logits(h, DenseMatrix(head), cap)
    agree(results[0][:1], [cross_entropy(logits, targets)])


def test_somebodys_logits_are_what_losses_are_made_of() -> None:
    def logits(h: Tensor, head: Matrix, cap: float | None) -> Tensor:
        return portable().logits(h, head, cap)

    table = replace(portable(), logits=logits)
    assert differentiable_operations(table).cross_entropy is None
    assert differentiable_operations(portable()).cross_entropy is not None


@pytest.mark.parametrize("same", [False, True])
def test_gated_mlps(same: bool) -> None:
    """Gate and up may be one matrix: then both gradients are the one tensor's."""
    x, gate, down, dy = draw(0, 2, 3, 16), draw(1, 24, 16), draw(3, 16, 24), draw(4, 2, 3, 16)
    up = gate if same else draw(2, 24, 16)
    results = []
    for kernels in (GATED, NONE):
        matrices = (DenseMatrix(w) for w in (gate, up, down))
        made = training_operations(None, (), kernels).gated_mlp(x, *matrices)
        results.append([made, *(made * dy).sum().gradient(x, gate, down, *(() if same else (up,)))])
    agree(*results)
