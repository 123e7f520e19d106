"""One decoder layer: attention, dense MLP or mixture of experts, per-layer input, layer scalar.

Written against ``Operations``. Formulas follow transformers 5.23.0, ``models/gemma4/modeling_gemma4.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, UOp, dtypes

from gemma4_core.config import LayerConfig, TextConfig
from gemma4_core.model.spans import Span
from gemma4_core.ops import Operations
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.portable import gelu_tanh
from gemma4_core.weights import ExpertStack, Matrix, Weight


def matrix(weight: Weight) -> Matrix:
    """The matrix that a place holds now."""
    assert isinstance(weight.matrix, Matrix)
    return weight.matrix


def stack(weight: Weight) -> ExpertStack:
    """The expert stack that a place holds now."""
    assert isinstance(weight.matrix, ExpertStack)
    return weight.matrix


def scale(x: Tensor, factor: float) -> Tensor:
    """``x`` times a constant that is not rounded to x's dtype first."""
    return (x.cast(dtypes.float32) * factor).cast(x.dtype)


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of ``x [n, E]`` in order, the earlier of equals first: values and int32 indices.

    By ranks instead of a sort: for a hundred experts that is two small kernels instead of dozens.
    """
    size = int(x.shape[-1])
    index = Tensor.arange(size, dtype=dtypes.int32)
    mine, other = x.unsqueeze(2), x.unsqueeze(1)  # [n, E, 1], [n, 1, E]
    earlier = index.reshape(1, 1, size) < index.reshape(1, size, 1)
    rank = ((other > mine) | ((other == mine) & earlier)).sum(-1, dtype=dtypes.int32)  # [n, E]
    place = rank.unsqueeze(1) == Tensor.arange(count, dtype=dtypes.int32).reshape(1, count, 1)
    values = place.where(x.unsqueeze(1), 0.0).sum(-1)
    return values, place.where(index.reshape(1, 1, size), 0).sum(-1, dtype=dtypes.int32)


@dataclass(frozen=True)
class Rotation:
    """cos and sin ``[T, head_dim / 2]`` of a call's positions, or ``[B, T, head_dim / 2]`` where each sequence has its
    own, for sliding and for full layers."""

    sliding: tuple[Tensor, Tensor]
    full: tuple[Tensor, Tensor]

    def of(self, layer: LayerConfig) -> tuple[Tensor, Tensor]:
        return self.full if layer.is_full else self.sliding

    def last_row(self, row: int | UOp) -> Rotation:
        return self.rows(row, 1)

    def rows(self, start: int | UOp, length: int) -> Rotation:
        """The rows ``start … start + length - 1``."""
        stop = start + length
        (a, b), (c, d) = self.sliding, self.full
        if len(a.shape) == 3:
            return Rotation((a[:, start:stop], b[:, start:stop]), (c[:, start:stop], d[:, start:stop]))
        return Rotation((a[start:stop], b[start:stop]), (c[start:stop], d[start:stop]))

    def at(self, positions: Tensor) -> Rotation:
        """Those of int32 ``positions [B, T]``."""
        (a, b), (c, d) = self.sliding, self.full
        return Rotation((a[positions], b[positions]), (c[positions], d[positions]))


class Attention:
    """Grouped-query attention with q, k and v norms. A shared layer has no k and v of its own; a K=V layer takes its
    values from the raw k projection."""

    def __init__(self, layer: LayerConfig, text: TextConfig, places: dict[str, Weight], tensors: dict[str, Tensor]):
        self.layer, self.heads, self.eps = layer, text.num_attention_heads, text.rms_norm_eps
        self.q_proj, self.o_proj = places["self_attn.q_proj.weight"], places["self_attn.o_proj.weight"]
        self.q_norm = tensors["self_attn.q_norm.weight"]
        if not layer.is_shared:
            self.k_proj, self.k_norm = places["self_attn.k_proj.weight"], tensors["self_attn.k_norm.weight"]
            self.v_proj = None if layer.k_eq_v else places["self_attn.v_proj.weight"]

    def queries(self, x: Tensor, rotation: Rotation, ops: Operations) -> Tensor:
        """``x [B, T, H]``: rotated queries ``[B, T, heads, D]``."""
        batch, length = x.shape[0], x.shape[1]
        # [B, T, heads * D] -> [B, T, heads, D]
        q = ops.linear(x, matrix(self.q_proj)).reshape(batch, length, self.heads, self.layer.head_dim)
        return ops.rope(ops.rms_norm(q, self.q_norm, self.eps), *rotation.of(self.layer))

    def keys_values(self, x: Tensor, rotation: Rotation, span: Span, ops: Operations) -> KeyValues:
        """This call's own K/V taken into the span."""
        batch, length = x.shape[0], x.shape[1]
        shape = (batch, length, self.layer.num_key_value_heads, self.layer.head_dim)
        raw = ops.linear(x, matrix(self.k_proj)).reshape(*shape)  # [B, T, kv heads, D]
        value = raw if self.v_proj is None else ops.linear(x, matrix(self.v_proj)).reshape(*shape)
        key = ops.rope(ops.rms_norm(raw, self.k_norm, self.eps), *rotation.of(self.layer))
        value = ops.rms_norm(value, None, self.eps)
        # [B, T, kv heads, D] -> [B, kv heads, T, D]
        return span.extend(self.layer, key.permute(0, 2, 1, 3), value.permute(0, 2, 1, 3))

    def __call__(self, x: Tensor, kv: KeyValues, rotation: Rotation, ops: Operations) -> Tensor:
        mixed = ops.attention(self.queries(x, rotation, ops), kv)
        # [B, T, heads, D] -> [B, T, heads * D]
        return ops.linear(mixed.reshape(x.shape[0], x.shape[1], -1), matrix(self.o_proj))


class DenseFeedForward:
    """norm → gated MLP → norm."""

    def __init__(self, text: TextConfig, places: dict[str, Weight], tensors: dict[str, Tensor]) -> None:
        self.eps = text.rms_norm_eps
        self.before, self.after = (tensors[f"{n}_feedforward_layernorm.weight"] for n in ("pre", "post"))
        self.gate, self.up, self.down = (places[f"mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))

    def dense(self, h: Tensor, ops: Operations) -> Tensor:
        """The gated MLP of the normalised stream."""
        x = ops.rms_norm(h, self.before, self.eps)
        return ops.gated_mlp(x, matrix(self.gate), matrix(self.up), matrix(self.down))

    def __call__(self, h: Tensor, ops: Operations) -> Tensor:
        return ops.rms_norm(self.dense(h, ops), self.after, self.eps)


class ExpertFeedForward(DenseFeedForward):
    """A dense branch and a mixture of experts side by side, each with its own norms."""

    def __init__(self, text: TextConfig, places: dict[str, Weight], tensors: dict[str, Tensor]) -> None:
        super().__init__(text, places, tensors)
        self.count = text.top_k_experts
        self.router, self.gate_up = places["router.proj.weight"], places["experts.gate_up_proj"]
        self.experts_down = places["experts.down_proj"]
        self.router_scale, self.expert_scale = tensors["router.scale"], tensors["router.per_expert_scale"]
        self.dense_after = tensors["post_feedforward_layernorm_1.weight"]
        self.experts_before = tensors["pre_feedforward_layernorm_2.weight"]
        self.experts_after = tensors["post_feedforward_layernorm_2.weight"]

    def route(self, h: Tensor, ops: Operations) -> tuple[Tensor, Tensor]:
        """``h [n, H]``, the residual stream before any norm: chosen experts int32 ``[n, k]`` and weights fp32."""
        scaled = scale(ops.rms_norm(h, None, self.eps) * self.router_scale, h.shape[-1] ** -0.5)
        shares = ops.linear(scaled, matrix(self.router)).cast(dtypes.float32).softmax(-1).contiguous()
        weights, chosen = largest(shares, self.count)
        weights = weights / weights.sum(-1, keepdim=True)
        return chosen, weights * self.expert_scale[chosen].cast(dtypes.float32)

    def __call__(self, h: Tensor, ops: Operations) -> Tensor:
        flat = h.reshape(-1, h.shape[-1])  # [B, T, H] -> [B * T, H]
        chosen, weights = self.route(flat, ops)
        x = ops.rms_norm(flat, self.experts_before, self.eps)
        mixed = ops.experts(x, chosen, weights, stack(self.gate_up), stack(self.experts_down)).reshape(*h.shape)
        dense = ops.rms_norm(self.dense(h, ops), self.dense_after, self.eps)
        return ops.rms_norm(dense + ops.rms_norm(mixed, self.experts_after, self.eps), self.after, self.eps)


class PerLayerInput:
    """The layer's own slice of the per-layer embedding, gated by the stream."""

    def __init__(self, text: TextConfig, places: dict[str, Weight], tensors: dict[str, Tensor]) -> None:
        self.eps = text.rms_norm_eps
        self.gate, self.projection = places["per_layer_input_gate.weight"], places["per_layer_projection.weight"]
        self.after = tensors["post_per_layer_input_norm.weight"]

    def __call__(self, h: Tensor, ple: Tensor, ops: Operations) -> Tensor:
        gated = gelu_tanh(ops.linear(h, matrix(self.gate))) * ple
        return ops.rms_norm(ops.linear(gated, matrix(self.projection)), self.after, self.eps)


class DecoderLayer:
    """Attention and feed-forward, each between two norms and added to the stream."""

    def __init__(self, layer: LayerConfig, text: TextConfig, places: dict[str, Weight], tensors: dict[str, Tensor]):
        self.config, self.eps = layer, text.rms_norm_eps
        self.attention = Attention(layer, text, places, tensors)
        kind = ExpertFeedForward if text.enable_moe_block else DenseFeedForward
        self.feed_forward = kind(text, places, tensors)
        self.per_layer = PerLayerInput(text, places, tensors) if text.hidden_size_per_layer_input else None
        self.before, self.after = tensors["input_layernorm.weight"], tensors["post_attention_layernorm.weight"]
        self.scalar = tensors["layer_scalar"]

    def keys_values(self, h: Tensor, rotation: Rotation, span: Span, ops: Operations) -> KeyValues:
        """What this layer's queries attend to; not for shared layers."""
        return self.attention.keys_values(ops.rms_norm(h, self.before, self.eps), rotation, span, ops)

    def __call__(self, h: Tensor, kv: KeyValues, ple: Tensor | None, rotation: Rotation, ops: Operations) -> Tensor:
        """``h [B, T, H]``, the layer's per-layer input ``[B, T, P]``: the new stream ``[B, T, H]``."""
        x = self.attention(ops.rms_norm(h, self.before, self.eps), kv, rotation, ops)
        h = h + ops.rms_norm(x, self.after, self.eps)
        h = h + self.feed_forward(h, ops)
        if self.per_layer is not None and ple is not None:
            h = h + self.per_layer(h, ple, ops)
        return h * self.scalar
