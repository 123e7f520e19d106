"""Operations of training over a device's kernels: gradients against the portable forms, with kernels that stand in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.config import parse_config, preset_dict
from gemma4_core.model.spans import FreshSpan, visible
from gemma4_core.ops import portable
from gemma4_core.ops.attention import KeyValues, Pattern
from gemma4_core.ops.differentiable import differentiable_operations, training_operations
from gemma4_core.ops.fused import NONE, Fused
from gemma4_core.ops.portable import capped, cross_entropy, gelu_tanh
from gemma4_core.ops.sliding_blocks import mask_of_blocks
from gemma4_core.weights import DenseMatrix, Matrix

pytestmark = pytest.mark.usefixtures("cpu")


def draw(seed: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).realize()


def agree(found: list[Tensor], truths: list[Tensor], limit: float = 1e-5) -> None:
    for one, truth in zip(found, truths, strict=True):
        truth_values = truth.numpy()
        assert one.shape == truth.shape and np.abs(truth_values).max() > 0
        assert np.abs(one.numpy() - truth_values).max() < limit * np.abs(truth_values).max()


def root(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def norm_gradient(x: Tensor, weight: Tensor | None, eps: float, dy: Tensor) -> Tensor:
    r, d = root(x, eps), dy if weight is None else dy * weight
    return (r * (d - x * (d * x).mean(-1, keepdim=True) * r * r)).contiguous()


def norm_weight_gradient(x: Tensor, eps: float, dy: Tensor) -> Tensor:
    return (dy * x * root(x, eps)).reshape(-1, x.shape[-1]).sum(0)


NORMS = Fused(
    rms_norm=lambda x, weight, eps: portable().rms_norm(x, weight, eps).contiguous() if x.shape[-1] % 8 == 0 else None,
    rms_norm_gradient=norm_gradient, rms_norm_weight_gradient=norm_weight_gradient,
)  # fmt: skip


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


def seen_by(pattern: Pattern, length: int) -> Tensor:
    """The mask that a pattern describes: bool ``[B or 1, T, T]``."""
    positions = Tensor.arange(length)
    mask = visible(positions, positions, pattern.window, pattern.blocks, pattern.blocks).reshape(-1, length, length)
    if pattern.segments is not None:
        mask = mask & (pattern.segments.unsqueeze(2) == pattern.segments.unsqueeze(1))
    return mask


def weights_of(scores: Tensor, pattern: Pattern, band: int | None, dtype: DType) -> Tensor:
    """Stands in for a device's softmax."""
    taken.append(band)
    length = int(scores.shape[-2]) if pattern.segments is None else int(pattern.segments.shape[1])
    if band is None:
        mask = seen_by(pattern, length).unsqueeze(1).unsqueeze(1)
    else:
        mask = mask_of_blocks(seen_by(pattern, length).unsqueeze(1).unsqueeze(1), band)
    return mask.where(scores, -1e30).softmax(-1).cast(dtype).contiguous()


def scores_gradient(weights: Tensor, slope: Tensor, pattern: Pattern, band: int | None) -> Tensor:
    return (weights * (slope - (weights * slope).sum(-1, keepdim=True))).contiguous()


taken: list[int | None] = []


@pytest.mark.parametrize(
    ("length", "media", "packed"),
    [(6, False, False), (9, True, False), (9, False, True), (15, False, True), (15, True, True)],
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
    if banded and not packed:
        pytest.skip("the stand-in needs to know the length")
    taken.clear()
    results = []
    for kernels in (Fused(softmax=weights_of, softmax_gradient=scores_gradient), NONE):
        made = training_operations(None, (), kernels).attention(q, kv)
        results.append([made, *(made * dy).sum().gradient(q, k, v)])
    agree(*results)
    assert set(taken) == {4 if banded else None}


def test_a_mask_that_follows_no_pattern_is_kept() -> None:
    q, k, mask = draw(1, 1, 6, 2, 8), draw(2, 1, 1, 6, 8), Tensor(np.eye(6, dtype=np.bool_))
    taken.clear()
    kernels = Fused(softmax=weights_of, softmax_gradient=scores_gradient)
    found = training_operations(None, (), kernels).attention(q, KeyValues(k, k, mask))
    agree([found], [portable().attention(q, KeyValues(k, k, mask))])
    assert not taken


def row_losses(raw: Tensor, targets: Tensor, cap: float | None) -> Tensor | None:
    """Stands in for a device's losses."""
    if raw.shape[1] % 8:
        return None
    logits = capped(raw, cap)
    return cross_entropy(logits, targets).stack(logits.logsumexp(-1), dim=1).contiguous()


def logits_gradient(raw: Tensor, targets: Tensor, cap: float | None, losses: Tensor, slopes: Tensor) -> Tensor:
    here = Tensor.arange(int(raw.shape[1])).unsqueeze(0) == targets.unsqueeze(1)
    logits = capped(raw, cap)
    bent = 0.0 if cap is None else (logits / cap).square()
    slope = ((logits - losses[:, 1:]).exp() - here.cast(dtypes.float32)) * (1 - bent)
    return ((targets >= 0).unsqueeze(1).where(slope, 0.0) * slopes.unsqueeze(1)).contiguous()


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("words", [40, 37])
def test_losses(cap: float | None, words: int) -> None:
    h, head, slopes = draw(0, 6, 16), draw(1, words, 16), draw(2, 6)
    targets = Tensor(np.array([3, -100, 0, words - 1, -1, 9], np.int32))
    results = []
    for kernels in (Fused(cross_entropy=row_losses, cross_entropy_gradient=logits_gradient), NONE):
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


def gated_gradients(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    (to_gate,) = (gelu_tanh(gate) * up * dy).sum().gradient(gate)
    return to_gate.contiguous(), (dy * gelu_tanh(gate)).contiguous()


@pytest.mark.parametrize("same", [False, True])
def test_gated_mlps(same: bool) -> None:
    """Gate and up may be one matrix: then both gradients are the one tensor's."""
    x, gate, down, dy = draw(0, 2, 3, 16), draw(1, 24, 16), draw(3, 16, 24), draw(4, 2, 3, 16)
    up = gate if same else draw(2, 24, 16)
    results = []
    for kernels in (Fused(gated=lambda g, u: (gelu_tanh(g) * u).contiguous(), gated_gradients=gated_gradients), NONE):
        matrices = (DenseMatrix(w) for w in (gate, up, down))
        made = training_operations(None, (), kernels).gated_mlp(x, *matrices)
        results.append([made, *(made * dy).sum().gradient(x, gate, down, *(() if same else (up,)))])
    agree(*results)
