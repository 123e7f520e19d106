"""The operations seam of towers: the costly operations of an encoder over many rows.

``TowerOperations`` is to vision and audio towers what ``Operations`` is to the text decoder: a table of functions with
a portable form, which a device brings faster ones for through ``Operations.towers``. A tower trains on the portable
form, which is differentiable, and runs captured on the best form that its device has.
"""

from __future__ import annotations

from functools import partial

from tinygrad import Tensor, dtypes

from gemma4_core.ops import Operations
from gemma4_core.ops.portable import MASKED, gelu_tanh, rms_norm
from gemma4_core.ops.products import linear as tensor_core_linear
from gemma4_core.ops.products import materialized, product
from gemma4_core.ops.tower_table import Bounds, Rotation, TowerOperations
from gemma4_core.weights import Matrix

QUERY_ROWS = 1280
"""Queries attended at once: bounds the scores in memory for large budgets."""


def portable_towers(operations: Operations) -> TowerOperations:
    """The differentiable tinygrad form of each, which runs on every backend and is the oracle for every faster one.
    Products go through ``operations.linear``."""
    return TowerOperations(
        name="portable", linear=partial(linear, operations), attention=attention, norm=norm, heads=heads, gated=gated,
        silu=silu, bounded=clamp,
    )  # fmt: skip


def tower_operations(operations: Operations, device: str) -> TowerOperations:
    """What a model's device brings for towers that run without gradients, the portable form where it brings nothing."""
    brought = operations.towers
    return portable_towers(operations) if brought is None else brought(operations, device)


# ------------------------------------------------------------------------------------------------ the portable form


def clamp(x: Tensor, bounds: Bounds | None) -> Tensor:
    """``x`` between bounds, where there are any."""
    if bounds is None:
        return x
    # in fp32: most devices have no maximum of bf16 values, and what stands in for it rounds after each step
    low, high = (bound.cast(dtypes.float32) if isinstance(bound, Tensor) else bound for bound in bounds)
    return x.cast(dtypes.float32).maximum(low).minimum(high).cast(x.dtype)


def linear(operations: Operations, x: Tensor, matrix: Matrix) -> Tensor:
    """See ``TowerOperations.linear``."""
    if operations.replaced("linear"):
        return materialized(operations.linear(materialized(x), matrix))
    return tensor_core_linear(x, matrix, operations.linear)


def attention(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """See ``TowerOperations.attention``."""
    count, heads, size = q.shape
    groups, media = k.shape[1], real.shape[0] if real.ndim == 2 else 1
    # [N, heads, D] -> [media, kv heads, heads per kv head, N / media, D]
    q = q.reshape(media, -1, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    # [N, kv heads, D] -> [media, kv heads, 1, N / media, D]
    k, v = (x.reshape(media, -1, groups, size).permute(0, 2, 1, 3).unsqueeze(2) for x in (k, v))
    q, k, v = materialized(q), materialized(k), materialized(v)
    seen = real.reshape(media, 1, 1, 1, -1)  # [media, N / media] -> [media, 1, 1, 1, N / media]
    rows = []
    for start in range(0, count // media, QUERY_ROWS):
        scores = materialized(product(q[:, :, :, start : start + QUERY_ROWS], k.transpose(-1, -2)))
        weights = materialized(seen.where(scores, MASKED).softmax(-1).cast(v.dtype))
        rows.append(materialized(product(weights, v).cast(v.dtype)))
    mixed = rows[0].cat(*rows[1:], dim=3) if len(rows) > 1 else rows[0]
    # [media, kv heads, heads per kv head, N / media, D] -> [N, heads * D]
    return mixed.permute(0, 3, 1, 2, 4).reshape(count, heads * size)


def norm(x: Tensor, weight: Tensor, eps: float, bounds: Bounds | None = None, added: Tensor | None = None) -> Tensor:
    """See ``TowerOperations.norm``."""
    normed = rms_norm(clamp(x, bounds), weight, eps)
    # in memory after each addition: else every reader repeats the additions before it
    return normed if added is None else (added + normed).contiguous()


def heads(
    x: Tensor, size: int, weight: Tensor | None, eps: float, bounds: Bounds | None, rotation: Rotation | None
) -> Tensor:
    """See ``TowerOperations.heads``."""
    x = clamp(x, bounds).reshape(x.shape[0], -1, size)  # [N, heads * D] -> [N, heads, D]
    normed = rms_norm(x, weight, eps)
    return normed if rotation is None else rotate(normed, *rotation)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Two-dimensional rotary embedding of ``x [N, heads, D]``: the first half of a head turns with the patch's column,
    the second with its row; inside a half, lane j pairs with lane j + D/4. ``cos, sin`` are ``[N, 2, D/4]``."""
    count, heads, size = x.shape
    halves = x.reshape(count, heads, 2, 2, size // 4)  # [N, heads, D] -> [N, heads, axis, lane half, D/4]
    first, second = halves[:, :, :, 0], halves[:, :, :, 1]  # [N, heads, axis, D/4]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [N, 1, axis, D/4]
    turned = (first * cos - second * sin).stack(second * cos + first * sin, dim=3)
    return turned.reshape(count, heads, size).cast(x.dtype)  # [N, heads, axis, lane half, D/4] -> [N, heads, D]


def gated(
    gate: Tensor, up: Tensor, gate_bounds: Bounds | None, up_bounds: Bounds | None, bounds: Bounds | None
) -> Tensor:
    """See ``TowerOperations.gated``."""
    return clamp(gelu_tanh(clamp(gate, gate_bounds)) * clamp(up, up_bounds), bounds)


def silu(x: Tensor, bounds: Bounds | None, after: Bounds | None) -> Tensor:
    """See ``TowerOperations.silu``."""
    wide = clamp(x, bounds).cast(dtypes.float32)
    return clamp((wide * wide.sigmoid()).cast(x.dtype), after)
