"""The operations that training differentiates: the portable forms, with what products read and give kept in memory.

tinygrad fuses what makes an operand into the product, and so computes it anew for every row or column of the result; in
a backward pass that is several times the product itself, and no work for tensor cores.
"""

from __future__ import annotations

from dataclasses import replace

from tinygrad import Tensor, dtypes

from gemma4_core.ops import portable, products
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.portable import attention as plain_attention
from gemma4_core.ops.portable import gelu_tanh
from gemma4_core.ops.portable import linear as plain_linear
from gemma4_core.ops.products import gradient_kept, kept
from gemma4_core.weights import Matrix


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """As the portable ``linear``."""
    rows = products.linear(x.reshape(-1, x.shape[-1]), matrix, plain_linear)  # [..., in] -> [n, in]
    return rows.reshape(*x.shape[:-1], matrix.shape[0])


def gated_mlp(x: Tensor, gate: Matrix, up: Matrix, down: Matrix) -> Tensor:
    """As the portable ``gated_mlp``."""
    x = kept(x)
    return linear(gelu_tanh(linear(x, gate)) * linear(x, up), down)


def attention(q: Tensor, kv: KeyValues) -> Tensor:
    """As the portable ``attention``; the gradients of keys and values are products for each head, added afterwards."""
    heads = q.shape[2]

    def for_each_head(x: Tensor) -> Tensor:
        batch, groups, length, size = x.shape
        # [B, kv heads, S, D] -> [B, kv heads, 1, S, D] -> [B, kv heads, group, S, D] -> [B, heads, S, D]
        spread = kept(x).unsqueeze(2).expand(batch, groups, heads // groups, length, size)
        return gradient_kept(spread.reshape(batch, heads, length, size))

    return kept(plain_attention(kept(q), replace(kv, k=for_each_head(kv.k), v=for_each_head(kv.v))))


def logits(h: Tensor, head: Matrix, softcap: float | None) -> Tensor:
    """As the portable ``logits``."""
    raw = linear(h, head).cast(dtypes.float32)
    return raw if softcap is None else (raw / softcap).tanh() * softcap


OPERATIONS = replace(
    portable(), name="training", linear=linear, gated_mlp=gated_mlp, attention=attention, logits=logits
)
"""Operations that have gradients; a device's own may not."""
