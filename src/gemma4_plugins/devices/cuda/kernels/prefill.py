"""Chunks of a prompt through tensor-core kernels, launched one after another past tinygrad's scheduler.

For a prompt only keys and values of the positions are needed, so layers that share theirs do not run, nor does the last
own layer beyond its keys and values; the last position goes through the persistent kernel, which ends in logits. Where
hidden states are wanted, all layers run for all rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.model.ids import block_ends
from gemma4_core.model.layers import DecoderLayer, ExpertFeedForward, Rotation
from gemma4_core.ops.graphs import upload
from gemma4_core.weights import Weight
from gemma4_plugins.devices.cuda.kernels.chunk import Buffers, Experts, Kernels, passing
from gemma4_plugins.devices.cuda.kernels.table import scale_of, tensor_of

if TYPE_CHECKING:
    from gemma4_core.contracts.rows import MediaRows
    from gemma4_core.contracts.steps import DecoderView, Slots


@dataclass(frozen=True)
class Addition:
    """What the next norm adds to the stream: a product's parts, their norm's weight, and the layer's scalar."""

    y: Tensor | None = None
    parts: int = 0
    after: Tensor | None = None
    scalar: Tensor | None = None


@dataclass(frozen=True)
class Piece:
    """Rows of one slot that run together: the first position, how many, whether all layers run for all of them, and
    where each layer's keys and values of that slot lie."""

    start: int
    count: int
    every: bool
    caches: Sequence[ctypes.c_uint64]
    until: Tensor | None = None
    """int32: the last position that each one sees on sliding layers, where tokens of a picture see each other."""


class Chunks:
    """Runs chunks against slots. What it leaves on the device is overwritten by the next chunk of the model."""

    def __init__(self, view: DecoderView, slots: Slots, rotation: Rotation) -> None:
        self.view, self.slots, self.rotation = view, slots, rotation
        self.text = view.text.config
        if "cuda chunks" not in view.scratch:
            view.scratch["cuda chunks"] = (Kernels(self.text), Buffers(self.text, view.device))
        self.kernels, self.b = cast(tuple[Kernels, Buffers], view.scratch["cuda chunks"])

    def run(
        self, ids: np.ndarray, media: MediaRows | None, start: int, count: int, caches: Sequence[ctypes.c_uint64],
        *, every: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """Append the first ``count`` of the rows at positions from ``start`` on, at most ``CHUNK``; with ``every``
        their final hidden states ``[count or more, H]``.

        Args:
            ids: int32 ``[N]``.
            media: the soft tokens among all N rows.
            caches: see ``Piece``.
        """
        piece = Piece(start, count, every, caches, self._until(media, start))
        self._piece(piece, ids[:count], media)
        return self.b.states(count) if every else None

    def _upload(self, array: np.ndarray) -> Tensor:
        return upload(np.ascontiguousarray(array, np.int32), self.view.device)

    def _until(self, media: MediaRows | None, start: int) -> Tensor | None:
        """See ``Piece``."""
        if media is None or media.blocks is None or not media.sees_both_ways:
            return None
        return self._upload(start + block_ends(media.blocks[None]))

    def _last(self, piece: Piece) -> int:
        """Layers that run."""
        return self.text.num_hidden_layers if piece.every else self.text.first_shared_layer

    def _piece(self, piece: Piece, ids: np.ndarray, media: MediaRows | None) -> None:
        b, count, text = self.b, piece.count, self.view.text
        tokens = self._upload(ids)
        marks = soft = None
        if media is not None and (media.soft[:count] >= 0).any():
            marks, soft = self._upload(media.soft[:count]), media.tokens.cast(dtypes.bfloat16).contiguous().realize()
        given = passing(tokens)
        self.kernels("embed_rows", count, given, passing(marks), passing(soft), tensor_of(text.embedding),
                 scale_of(text.embedding), b.h, b.x)  # fmt: skip
        rows = self._ple_inputs(piece, ids, given) if text.per_layer else None
        add = Addition()
        for layer in text.layers[: self._last(piece)]:
            self._norm(count, add, layer.before)
            add = self._layer(layer, piece)
        if piece.every:
            self._norm(count, add, text.norm, b.states(count))
        self.references = (tokens, marks, soft, rows, piece.until)

    def _norm(self, count: int, add: Addition, before: Tensor | None, out: Tensor | None = None) -> None:
        b, out = self.b, self.b.x if out is None else out
        self.kernels(
            "norm_rows", count, b.h, add.y, add.parts, add.after, add.scalar, before, out, None, None, 1.0, None, None
        )

    def _added(self, a: Tensor, weight: Weight, count: int, inner: int) -> int:
        """A product that is added to the stream, in ``y``; returns its parts."""
        hidden = self.text.hidden_size
        parts = self.kernels.parts(count, hidden, inner)
        self.kernels.product(a, [weight], self.b.y, count, hidden, inner, parts=parts)
        return parts

    def _ple_inputs(self, piece: Piece, ids: np.ndarray, tokens: ctypes.c_uint64) -> Tensor | None:
        b, text, width = self.b, self.view.text, self.view.text.per_layer
        layers = self._last(piece) if piece.every else self._last(piece) - 1
        if not layers:
            return None
        self.kernels.product(b.x, [text.ple_projection], b.context, piece.count, layers * width, self.text.hidden_size)
        host = self.view.ple_host
        rows = host.rows(ids.reshape(1, -1)) if host is not None else None
        table = tensor_of(text.ple_table) if rows is None else passing(rows)
        scales = scale_of(text.ple_table) if rows is None else None
        length, by_position = ctypes.c_uint64(self.text.num_hidden_layers * width), int(host is not None)
        self.kernels("ple_rows", piece.count, tokens, b.context, table, scales, length, by_position, text.ple_norm, b.ple,
                 layers)  # fmt: skip
        return rows

    def _layer(self, layer: DecoderLayer, piece: Piece) -> Addition:
        """One layer from its normed input ``x``; returns what the next norm adds to the stream."""
        b, count, config, ff, ple = self.b, piece.count, layer.config, layer.feed_forward, layer.per_layer
        last = not piece.every and config.index == self._last(piece) - 1
        self._attention(layer, piece, last)
        if last:
            return Addition()
        attended = self._added(b.mixed, layer.attention.o_proj, count, self._width(layer))
        if isinstance(ff, ExpertFeedForward):
            return self._mixture(layer, ff, count, attended)
        self._norm(count, Addition(b.y, attended, layer.after), ff.before)
        dense = self._dense(layer, count)
        if ple is None:
            return Addition(b.y, dense, ff.after, layer.scalar)
        assert b.gate is not None and b.gated is not None
        self._norm(count, Addition(b.y, dense, ff.after), None)
        self.kernels.product(b.x, [ple.gate], b.gate, count, self.view.text.per_layer, self.text.hidden_size)
        layers = self._last(piece) if piece.every else self._last(piece) - 1
        self.kernels("ple_gate", count, b.gate, b.ple, b.gated, config.index, layers)
        parts = self._added(b.gated, ple.projection, count, self.view.text.per_layer)
        return Addition(b.y, parts, ple.after, layer.scalar)

    def _width(self, layer: DecoderLayer) -> int:
        return self.text.num_attention_heads * layer.config.head_dim

    def _attention(self, layer: DecoderLayer, piece: Piece, keys_only: bool) -> None:
        b, config, attention, count = self.b, layer.config, layer.attention, piece.count
        own, queries = not config.is_shared, self._width(layer)
        keys = config.num_key_value_heads * config.head_dim
        held = self.slots.layers[config.donor if config.donor is not None else config.index]
        assert held is not None
        cache, positions = piece.caches[config.index], int(held.shape[3])
        matrices = [attention.q_proj]
        if own:
            matrices.append(attention.k_proj)
            if attention.v_proj is not None:
                matrices.append(attention.v_proj)
        width, splits = queries + keys * (len(matrices) - 1), (queries, queries + keys)
        self.kernels.product(b.x, matrices, b.qkv, count, width, self.text.hidden_size, splits)
        kind = "full" if config.is_full else "sliding"
        norm_k = attention.k_norm if own else None
        self.kernels(f"heads_{kind}", count, b.qkv, width, int(own), int(len(matrices) == 2), attention.q_norm, norm_k,
                 *self.rotation.of(config), b.queries, cache, positions, piece.start)  # fmt: skip
        if not keys_only:
            rows = count * (self.text.num_attention_heads // config.num_key_value_heads)
            sliding = [] if config.is_full else [config.window, passing(piece.until)]
            self.kernels(f"attend_{kind}", -(-rows // 64), b.queries, cache, b.mixed, positions, piece.start, count, *sliding,
                     height=config.num_key_value_heads)  # fmt: skip

    def _dense(self, layer: DecoderLayer, count: int) -> int:
        b, ff, width, hidden = self.b, layer.feed_forward, layer.config.intermediate_size, self.text.hidden_size
        self.kernels.gated(b.x, ff.gate, ff.up, b.inner, count, width, hidden)
        return self._added(b.inner, ff.down, count, width)

    def _mixture(self, layer: DecoderLayer, ff: ExpertFeedForward, count: int, attended: int) -> Addition:
        b, hidden, text = self.b, self.text.hidden_size, self.text
        e = cast(Experts, b.experts)
        inner = text.moe_intermediate_size
        self.kernels("norm_rows", count, b.h, b.y, attended, layer.after, None, ff.before, b.x, ff.router_scale, b.z,
                 hidden**-0.5, ff.experts_before, e.inputs)  # fmt: skip
        self.kernels.product(b.z, [ff.router], e.sums, count, text.num_experts, hidden)
        self.kernels("choose_rows", count, e.sums, ff.expert_scale, e.chosen, e.weight, e.counts)
        self.kernels("plan_experts", 1, e.counts, e.first, e.next, e.tile_expert, e.tile_row, e.tiles)
        self.kernels("place_rows", count, e.chosen, e.next, e.source, e.place)
        tiles = (e.first, e.tile_expert, e.tile_row)
        (gate_up,), (scale,) = self.kernels.weights([ff.gate_up])
        self.kernels("gemm_experts_gated", e.tiles, e.inputs, gate_up, scale, e.inner, e.source, *tiles,
                 height=-(-inner // 128))  # fmt: skip
        (down,), (scale,) = self.kernels.weights([ff.experts_down])
        self.kernels("gemm_experts_down", e.tiles, e.inner, down, scale, e.out, *tiles, height=-(-hidden // 256))
        dense = self._dense(layer, count)
        self.kernels("gather_experts", count, e.out, e.place, e.weight, b.z)
        self.kernels("join_branches", count, b.y, dense, b.z, ff.dense_after, ff.experts_after, e.joined)
        return Addition(e.joined, 1, ff.after, layer.scalar)
