"""The operations that training differentiates: the portable forms, with what products read and give kept in memory.

tinygrad fuses what makes an operand into the product, and so computes it anew for every row or column of the result; in
a backward pass that is several times the product itself, and no work for tensor cores. A device that has products of
its own (``Operations.matmul``) makes those of whole matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tinygrad import Tensor, dtypes

from gemma4_core.ops import LAYERS, Operations, norms, portable, products
from gemma4_core.ops.adapted import adapted, change_alone
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.frozen import Frozen, frozen_rows, readable, whole
from gemma4_core.ops.fused import NONE, Fused
from gemma4_core.ops.gated import gated
from gemma4_core.ops.losses import losses
from gemma4_core.ops.multiply import Multiply, multiplied
from gemma4_core.ops.portable import MASKED, capped, cross_entropy, gelu_tanh
from gemma4_core.ops.portable import linear as plain_linear
from gemma4_core.ops.portable import rms_norm as plain_norm
from gemma4_core.ops.products import materialized, materialized_gradient
from gemma4_core.ops.sliding_blocks import WORTH, in_a_row, keys_of_blocks, mask_of_blocks, queries_in_blocks
from gemma4_core.ops.softmax import Masked, softmax
from gemma4_core.weights import DenseMatrix, LowRankChange, Matrix


def differentiable_operations(table: Operations, checkpointing: bool = False) -> Operations:
    """The operations that a model with this table is trained with; those that somebody put into it are among them.

    With ``checkpointing`` without the device's products: the buffers of such kernels are arguments of a layer that is
    traced, and would live from its first run until it is computed again, which is what checkpointing is to avoid.
    """
    own = tuple((name, getattr(table, name)) for name in (*LAYERS, "logits") if table.replaced(name))
    if checkpointing:
        return training_operations(None, own)
    return training_operations(table.matmul, own, table.fused or NONE)


@lru_cache
def training_operations(
    matmul: Multiply | None, replacements: tuple[tuple[str, Any], ...] = (), fused: Fused = NONE
) -> Operations:
    """Operations that have gradients; kernels of a device have none. ``matmul`` and ``fused`` are the device's, if it
    has some."""
    own = Differentiable(matmul, fused)
    replaced = dict(replacements)
    table = replace(
        portable(), name="training", linear=own.linear, gated_mlp=own.gated_mlp, attention=own.attention,
        logits=own.logits, rms_norm=own.rms_norm,
        cross_entropy=None if "logits" in replaced else own.cross_entropy,
    )
    return replace(table, **replaced)


class Differentiable:
    """The operations over one device's products and kernels."""

    def __init__(self, matmul: Multiply | None, fused: Fused = NONE) -> None:
        self.matmul, self.fused = matmul, fused

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """As the portable ``linear``."""
        flat = x.reshape(-1, x.shape[-1])  # [..., in] -> [n, in]
        base, changes = matrix.adapted()
        rows = self.adapted(flat.contiguous(), base, changes) if changes else self.rows(flat, base)
        return rows.reshape(*x.shape[:-1], matrix.shape[0])

    def rows(self, x: Tensor, matrix: Matrix) -> Tensor:
        """``x [n, in]`` to ``[n, out]``, in memory."""
        again = None if type(matrix) is DenseMatrix else lambda: whole(matrix, x.dtype)
        rows = frozen_rows(x.contiguous(), Frozen(matrix, self.matmul, self.fused))
        if rows is None and self.matmul is not None and readable(matrix):
            rows = multiplied(self.matmul, x, whole(matrix, x.dtype), "nt", again=again)
        return products.linear(x, matrix, plain_linear) if rows is None else rows

    def adapted(self, x: Tensor, base: Matrix, changes: Sequence[LowRankChange]) -> Tensor:
        """``x [n, in]``, in memory, through a base and the changes beside it: ``[n, out]``."""
        if len(changes) == 1 and readable(base):
            found = adapted(x, Frozen(base, self.matmul, self.fused), changes[0])
            if found is not None:
                return found
        total = self.rows(x, base).cast(dtypes.float32)
        for change in changes:
            total = total + change_alone(x, change, self.matmul, self.fused)
        return materialized(total.cast(x.dtype))

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        """As the portable ``rms_norm``."""
        found = norms.rms_norm(self.fused, x, weight, eps)
        return plain_norm(x, weight, eps) if found is None else found

    def gated_mlp(self, x: Tensor, gate: Matrix, up: Matrix, down: Matrix) -> Tensor:
        """As the portable ``gated_mlp``."""
        x = materialized(x)
        gate_rows, up_rows = self.linear(x, gate), self.linear(x, up)
        inner = gated(self.fused, gate_rows, up_rows)
        return self.linear(gelu_tanh(gate_rows) * up_rows if inner is None else inner, down)

    def attention(self, q: Tensor, kv: KeyValues) -> Tensor:
        """As the portable ``attention``; in blocks where queries see few of many keys."""
        batch, length, heads, size = q.shape
        groups = kv.k.shape[1]
        # [B, T, heads, D] -> [B, kv heads, heads per kv head, T, D]
        grouped = q.reshape(batch, length, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
        if kv.band is not None and kv.mask is not None and length >= WORTH * kv.band:
            keys, values = (keys_of_blocks(x, kv.band) for x in (kv.k, kv.v))
            queries, mask = queries_in_blocks(grouped, kv.band), mask_of_blocks(kv.mask, kv.band)
            masked = Masked(mask, kv.pattern, kv.band)
            mixed = in_a_row(self.attended(queries, keys, values, masked), length)
        else:
            mixed = self.attended(grouped, kv.k, kv.v, Masked(kv.mask, kv.pattern))
        # [B, kv heads, group, T, D] -> [B, T, heads, D]
        return mixed.permute(0, 3, 1, 2, 4).reshape(batch, length, heads, size)

    def attended(self, q: Tensor, keys: Tensor, values: Tensor, masked: Masked) -> Tensor:
        """``[..., group, T, D]`` of queries ``[..., group, T, D]``, keys and values ``[..., S, D]``; the gradients of
        keys and values are a product for each head, then added."""
        q, keys, values = materialized(q), materialized(keys), materialized(values)
        scores = multiplied(self.matmul, q, keys, "nt", wide=True)
        if scores is None:
            scores = materialized(products.product(q, self.for_each_head(keys, q.shape[-3]).transpose(-1, -2)))
        weights = softmax(self.fused, scores, masked, q.dtype)  # [..., group, T, S]
        if weights is None:
            scores = scores if masked.mask is None else masked.mask.where(scores, MASKED)
            weights = materialized(scores.softmax(-1).cast(q.dtype))
        mixed = multiplied(self.matmul, weights, values, "nn")
        if mixed is None:
            mixed = materialized(products.product(weights, self.for_each_head(values, q.shape[-3])).cast(q.dtype))
        return mixed

    @staticmethod
    def for_each_head(x: Tensor, group: int) -> Tensor:
        """``x [..., S, D]`` for each of the heads that share it: ``[..., group, S, D]``."""
        return materialized_gradient(x.unsqueeze(-3).expand(*x.shape[:-2], group, *x.shape[-2:]))

    def logits(self, h: Tensor, head: Matrix, softcap: float | None) -> Tensor:
        """As the portable ``logits``."""
        return capped(self.linear(h, head), softcap)

    def cross_entropy(self, h: Tensor, targets: Tensor, head: Matrix, softcap: float | None) -> Tensor:
        """See ``Operations.cross_entropy``."""
        raw = self.linear(h, head)
        found = losses(self.fused, raw, targets, softcap)
        return cross_entropy(capped(raw, softcap), targets) if found is None else found
