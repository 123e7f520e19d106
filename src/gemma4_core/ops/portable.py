"""The portable form of every operation, in plain tinygrad. These are the oracle for faster ones."""

from __future__ import annotations

from tinygrad import Tensor, dtypes

from gemma4_core.ops.attention import KeyValues
from gemma4_core.weights import ExpertStack, Matrix

MASKED = -1e30


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """``x [..., in]`` times ``matrix [out, in]`` transposed: ``[..., out]``."""
    return matrix.matmul(x)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Root-mean-square norm in fp32; the weight multiplies directly, with no +1 (transformers 5.23.0)."""
    wide = x.cast(dtypes.float32)
    normed = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        normed = normed * weight.cast(dtypes.float32)
    return normed.cast(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate lane j of ``x [B, T, heads, D]`` with lane j + D/2 by the angles behind ``cos, sin [T, D/2]`` or
    ``[B, T, D/2]``."""
    half = cos.shape[-1]
    first, second = x[..., :half].cast(dtypes.float32), x[..., half:].cast(dtypes.float32)
    cos, sin = cos.unsqueeze(-2).cast(dtypes.float32), sin.unsqueeze(-2).cast(dtypes.float32)  # [(B,) T, 1, D/2]
    return (first * cos - second * sin).cat(second * cos + first * sin, dim=-1).cast(x.dtype)


def attention(q: Tensor, kv: KeyValues) -> Tensor:
    """Grouped attention, scale 1.0: query head h reads key head h // (heads / kv heads)."""
    batch, length, heads, size = q.shape
    weights = attention_weights(q, kv).cast(q.dtype)
    mixed = weights.matmul(kv.v.unsqueeze(2), dtype=dtypes.float32).cast(q.dtype)
    # [B, kv heads, group, T, D] -> [B, T, heads, D]
    return mixed.permute(0, 3, 1, 2, 4).reshape(batch, length, heads, size)


def attention_weights(q: Tensor, kv: KeyValues) -> Tensor:
    """What each query ``q [B, T, heads, D]`` gives to each key, softmax in fp32: ``[B, kv heads, group, T, S]``, where
    a group is the heads that share a key head."""
    batch, length, heads, size = q.shape
    groups = kv.k.shape[1]
    # [B, T, heads, D] -> [B, kv heads, heads per kv head, T, D]
    grouped = q.reshape(batch, length, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    keys = kv.k.unsqueeze(2)  # [B, kv heads, 1, S, D]
    scores = grouped.matmul(keys.transpose(-1, -2), dtype=dtypes.float32)  # [B, kv heads, group, T, S]
    if kv.mask is not None:
        scores = kv.mask.where(scores, MASKED)
    return scores.softmax(-1)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (``gelu_pytorch_tanh``), in fp32."""
    wide = x.cast(dtypes.float32)
    return (0.5 * wide * (1 + (0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)).tanh())).cast(x.dtype)


def gated_mlp(x: Tensor, gate: Matrix, up: Matrix, down: Matrix) -> Tensor:
    """``down(gelu_tanh(gate(x)) * up(x))``."""
    return down.matmul(gelu_tanh(gate.matmul(x)) * up.matmul(x))


def experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: ExpertStack, down: ExpertStack) -> Tensor:
    """Weighted sum of the chosen experts' outputs for ``x [n, H]``.

    A few rows read only the weights of their own experts; with more rows than experts every expert runs over all
    rows with weight zero where it was not chosen, which reads each weight once.
    """
    count, inner = gate_up.shape[0], gate_up.shape[1] // 2
    if x.shape[0] * chosen.shape[1] <= count:
        both = gate_up.selected(x.unsqueeze(1), chosen)  # [n, k, 2 * inner]
        hidden = gelu_tanh(both[..., :inner]) * both[..., inner:]
        return (down.selected(hidden, chosen).cast(dtypes.float32) * weights.unsqueeze(-1)).sum(1).cast(x.dtype)
    both = gate_up.every(x)  # [experts, n, 2 * inner]
    out = down.every(gelu_tanh(both[..., :inner]) * both[..., inner:])  # [experts, n, H]
    every = Tensor.arange(count).reshape(count, 1, 1)
    share = (chosen.unsqueeze(0) == every).where(weights.unsqueeze(0), 0.0).sum(-1)  # [experts, n]
    return (out.cast(dtypes.float32) * share.unsqueeze(-1)).sum(0).cast(x.dtype)


def logits(h: Tensor, head: Matrix, softcap: float | None) -> Tensor:
    """The tied head and the soft cap ``c * tanh(x / c)``, in fp32."""
    return capped(head.matmul(h), softcap)


def capped(raw: Tensor, softcap: float | None) -> Tensor:
    """Raw logits in fp32 with the soft cap."""
    wide = raw.cast(dtypes.float32)
    return wide if softcap is None else (wide / softcap).tanh() * softcap


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The losses of fp32 logits ``[n, V]`` against targets ``[n]``, 0 for negative ones."""
    here = Tensor.arange(int(logits.shape[1]), dtype=dtypes.int32).unsqueeze(0) == targets.unsqueeze(1)
    each = logits.logsumexp(-1) - here.where(logits, 0.0).sum(-1)
    return (targets >= 0).where(each, 0.0)
