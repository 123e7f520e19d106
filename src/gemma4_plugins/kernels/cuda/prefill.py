"""Chunks of a prompt through tensor-core kernels, launched one after another past tinygrad's scheduler.

Only keys and values of the positions are needed, so layers that share theirs do not run here, nor does the last own
layer beyond its keys and values. The prompt's last position goes through the decode step, which ends in logits.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.config import LayerConfig, TextConfig
from gemma4_core.generation.finished import Finished
from gemma4_core.model.layers import DecoderLayer, ExpertFeedForward
from gemma4_plugins.kernels.cuda import launch
from gemma4_plugins.kernels.cuda.plan import model_constants
from gemma4_plugins.kernels.cuda.sources import chunk_source, device_source
from gemma4_plugins.kernels.cuda.step import CudaStep
from gemma4_plugins.kernels.cuda.table import tensor_of

if TYPE_CHECKING:
    from gemma4_core.generation.engine import Chunk, ChunkStep, Engine
    from gemma4_core.model.cache import Storage
    from gemma4_core.model.model import GemmaModel

CHUNK = 512
"""Positions that run together."""
GEMM_STAGE_BYTES = {128: (128 + 256) * 64, 64: (64 + 256) * 64}
GEMM_STAGES = 4
ROW_BYTES = 64
"""Shared memory of the kernels that work on one position."""


def attention_bytes(head_dim: int) -> int:
    """Shared memory of the attention kernel, as its ``ChunkShape`` lays it out."""
    keys, stride = (32 if head_dim > 256 else 64), head_dim * 2 + 16
    return 64 * stride + 2 * keys * stride + 64 * (keys * 2 + 16) + 2 * 64 * 4


class Kernels:
    """The compiled kernels of one model."""

    def __init__(self, text: TextConfig) -> None:
        source = device_source(chunk_source(model_constants(text)))
        sliding = next((x.head_dim for x in text.layers if not x.is_full), text.layers[0].head_dim)
        full = next((x.head_dim for x in text.layers if x.is_full), text.layers[0].head_dim)
        high, low = (GEMM_STAGES * GEMM_STAGE_BYTES[m] for m in (128, 64))
        shared = {
            "gemm_plain": high, "gemm_gated": high, "gemm_low": low, "gemm_experts_gated": low,
            "gemm_experts_down": low, "attend_sliding": attention_bytes(sliding), "attend_full": attention_bytes(full),
        }  # fmt: skip
        names = ["gemm_plain", "gemm_low", "gemm_gated", "embed_rows", "norm_rows", "heads_sliding", "heads_full",
                 "attend_sliding", "attend_full"]  # fmt: skip
        if text.hidden_size_per_layer_input:
            names += ["ple_rows", "ple_gate"]
        if text.enable_moe_block:
            names += ["join_branches", "choose_rows", "plan_experts", "place_rows", "gather_experts"]
            names += ["gemm_experts_gated", "gemm_experts_down"]
        threads = dict.fromkeys(("choose_rows", "plan_experts", "place_rows"), 32)
        self.by_name = launch.kernels(source, {n: (threads.get(n, 256), shared.get(n, ROW_BYTES)) for n in names})

        self.known: dict[int, tuple[Tensor, ctypes.c_uint64]] = {}

    def __call__(self, name: str, width: int, *arguments: Any, height: int = 1) -> None:
        """Launch with tensors that live as long as the model, None, numbers of 32 bits and ctypes values."""
        self.by_name[name].launch(width, [self._argument(x) for x in arguments], height)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self.known:
                self.known[id(value)] = (value, passing(value))
            return self.known[id(value)][1]
        if value is None:
            return ctypes.c_uint64(0)
        if isinstance(value, int):
            return ctypes.c_int32(value)
        return ctypes.c_float(value) if isinstance(value, float) else value


def passing(tensor: Tensor | None) -> ctypes.c_uint64:
    """The address of a tensor that need not live on, as an argument; the caller keeps it until the kernel has run."""
    return ctypes.c_uint64(0 if tensor is None else launch.address(tensor))


@dataclass(frozen=True)
class Experts:
    """Scratch of the mixture: choices, and their order by expert."""

    chosen: Tensor
    weight: Tensor
    counts: Tensor
    first: Tensor
    next: Tensor
    source: Tensor
    place: Tensor
    tile_expert: Tensor
    tile_row: Tensor
    inner: Tensor
    out: Tensor
    inputs: Tensor
    sums: Tensor
    tiles: int


class Buffers:
    """Device memory for one chunk; the model's own, since chunks run one after another."""

    def __init__(self, model: GemmaModel, layers: int) -> None:
        text = model.text.config
        width = max(text.num_attention_heads * x.head_dim for x in text.layers)
        keys = max(2 * x.num_key_value_heads * x.head_dim for x in text.layers)
        per_layer = text.hidden_size_per_layer_input or 0
        bf16, fp32, int32 = dtypes.bfloat16, dtypes.float32, dtypes.int32
        make = lambda *shape, dtype=bf16: Tensor.zeros(*shape, dtype=dtype, device=model.device).contiguous().realize()  # noqa: E731
        self.h = make(CHUNK, text.hidden_size, dtype=fp32)
        self.x, self.y, self.z = (make(CHUNK, text.hidden_size) for _ in range(3))
        self.qkv, self.queries, self.mixed = (make(CHUNK, n) for n in (width + keys, width, width))
        self.inner = make(CHUNK, max(x.intermediate_size for x in text.layers))
        self.context, self.ple = (make(CHUNK, layers * per_layer) if per_layer else None for _ in range(2))
        self.gate, self.gated = (make(CHUNK, per_layer) if per_layer else None for _ in range(2))
        self.experts: Experts | None = None
        if text.enable_moe_block:
            top, count, hidden = text.top_k_experts, text.num_experts, text.hidden_size
            rows, tiles = CHUNK * top, CHUNK * top // 64 + count
            wide = lambda *shape: make(*shape, dtype=int32)  # noqa: E731
            self.experts = Experts(
                chosen=wide(CHUNK, top), weight=make(CHUNK, top, dtype=fp32), counts=wide(count), first=wide(count + 1),
                next=wide(count), source=wide(rows), place=wide(rows), tile_expert=wide(tiles), tile_row=wide(tiles),
                inner=make(rows, text.moe_intermediate_size), out=make(rows, hidden), inputs=make(CHUNK, hidden),
                sums=make(CHUNK, count), tiles=tiles,
            )  # fmt: skip


def prefill(engine: Engine, storage: Storage) -> ChunkStep | None:
    """The chunk step for these buffers, or None where the decode kernel does not serve them."""
    if "cuda prefill" not in storage.graphs:
        step = engine.decode_step(storage, None)
        storage.graphs["cuda prefill"] = CudaPrefill(engine, storage, step) if isinstance(step, CudaStep) else None
    return storage.graphs["cuda prefill"]  # type: ignore[return-value]


class CudaPrefill:
    """Runs chunks against one cache's buffers."""

    def __init__(self, engine: Engine, storage: Storage, step: CudaStep) -> None:
        model = engine.model
        self.engine, self.storage, self.step, self.model = engine, storage, step, model
        self.text = model.text.config
        self.count = self.text.first_shared_layer
        self.rotation = model.text.rotation_table(storage.capacity + model.chunk)
        if "cuda chunks" not in model.graphs:
            model.graphs["cuda chunks"] = (Kernels(self.text), Buffers(model, self.count))
        made = cast(tuple[Kernels, Buffers], model.graphs["cuda chunks"])
        self.run, self.b = made

    def __call__(
        self, chunk: Chunk, start: int, soft_tokens: Tensor | None, every: bool, wanted: bool
    ) -> Tensor | Finished:
        """See ``ChunkStep``. Hidden states of every row, and a soft token at the end, take the portable way."""
        ids = chunk.ids[0]
        soft = chunk.soft[0] if chunk.soft is not None else None
        if every or (wanted and soft is not None and soft[-1] >= 0):
            return self.engine._append_portable(self.storage, start, chunk, soft_tokens, every)
        body = len(ids) - 1 if wanted else len(ids)
        for at in range(0, body, CHUNK):
            piece = slice(at, min(at + CHUNK, body))
            self._piece(ids[piece], None if soft is None else soft[piece], soft_tokens, start + at)
        if not wanted:
            return self.b.x
        token = self._upload(ids[-1:].reshape(1, 1))
        return Finished(*self.step.finish(token, start + body))

    def _upload(self, array: np.ndarray) -> Tensor:
        tensor = Tensor(np.ascontiguousarray(array, np.int32), device=self.model.device)
        return tensor.contiguous().realize()

    def _piece(self, ids: np.ndarray, soft: np.ndarray | None, soft_tokens: Tensor | None, start: int) -> None:
        b, count, text = self.b, len(ids), self.model.text
        tokens = self._upload(ids)
        marks = media = None
        if soft is not None and soft_tokens is not None and (soft >= 0).any():
            marks, media = self._upload(soft), soft_tokens.cast(dtypes.bfloat16).contiguous().realize()
        given = passing(tokens)
        self.run("embed_rows", count, given, passing(marks), passing(media), tensor_of(text.embedding), b.h, b.x)
        rows = self._ple_inputs(ids, given, count) if text.per_layer and self.count > 1 else None
        y = after = scalar = None
        for layer in text.layers[: self.count]:
            self.run("norm_rows", count, b.h, y, after, scalar, layer.before, b.x, None, None, 1.0, None, None)
            y, after, scalar = self._layer(layer, count, start)
        self.kept = (tokens, marks, media, rows)

    def _ple_inputs(self, ids: np.ndarray, tokens: ctypes.c_uint64, count: int) -> Tensor | None:
        b, text, width = self.b, self.model.text, self.model.text.per_layer
        layers = self.count - 1
        self._gemm(b.x, [tensor_of(text.ple_projection)], b.context, count, layers * width, self.text.hidden_size)
        host = self.model.ple_host
        rows = host.rows(ids.reshape(1, -1)) if host is not None else None
        table = tensor_of(text.ple_table) if rows is None else passing(rows)
        length, by_position = ctypes.c_uint64(self.text.num_hidden_layers * width), int(host is not None)
        self.run("ple_rows", count, tokens, b.context, table, length, by_position, text.ple_norm, b.ple, layers)
        return rows

    def _layer(self, layer: DecoderLayer, count: int, start: int) -> tuple[Tensor | None, ...]:
        """One layer from its normed input ``x``: what the next norm adds to the stream, with its weight and scalar."""
        b, config, attention, ff = self.b, layer.config, layer.attention, layer.feed_forward
        self._attention(layer, count, start)
        if config.index == self.count - 1:
            return None, None, None
        matrices = [tensor_of(attention.o_proj)]
        heads = self.text.num_attention_heads * config.head_dim
        self._gemm(b.mixed, matrices, b.y, count, self.text.hidden_size, heads)
        if isinstance(ff, ExpertFeedForward):
            self._mixture(layer, ff, count)
        else:
            self.run("norm_rows", count, b.h, b.y, layer.after, None, ff.before, b.x, None, None, 1.0, None, None)
            self._dense(layer, count, b.y)
        if layer.per_layer is None:
            return b.y, ff.after, layer.scalar
        ple, width = layer.per_layer, self.model.text.per_layer
        assert b.gate is not None and b.gated is not None
        self.run("norm_rows", count, b.h, b.y, ff.after, None, None, b.x, None, None, 1.0, None, None)
        self._gemm(b.x, [tensor_of(ple.gate)], b.gate, count, width, self.text.hidden_size)
        self.run("ple_gate", count, b.gate, b.ple, b.gated, config.index, self.count - 1)
        self._gemm(b.gated, [tensor_of(ple.projection)], b.y, count, self.text.hidden_size, width)
        return b.y, ple.after, layer.scalar

    def _attention(self, layer: DecoderLayer, count: int, start: int) -> None:
        b, config, attention = self.b, layer.config, layer.attention
        cache = self.storage.layers[config.index]
        assert cache is not None
        keys, queries = config.num_key_value_heads * config.head_dim, self.text.num_attention_heads * config.head_dim
        matrices = [tensor_of(attention.q_proj), tensor_of(attention.k_proj)]
        if attention.v_proj is not None:
            matrices.append(tensor_of(attention.v_proj))
        width = queries + keys * (len(matrices) - 1)
        splits = (queries, queries + keys)
        self._gemm(b.x, matrices, b.qkv, count, width, self.text.hidden_size, splits)
        kind = "full" if config.is_full else "sliding"
        cos, sin = self.rotation.of(config)
        slots = int(cache.shape[3])
        one = int(attention.v_proj is None)
        self.run(f"heads_{kind}", count, b.qkv, width, one, attention.q_norm, attention.k_norm, cos, sin, b.queries,
                 cache, slots, start)  # fmt: skip
        if config.index == self.count - 1:
            return
        rows = count * (self.text.num_attention_heads // config.num_key_value_heads)
        self.run(f"attend_{kind}", -(-rows // 64), b.queries, cache, b.mixed, slots, start, count, config.window or 0,
                 height=config.num_key_value_heads)  # fmt: skip

    def _dense(self, layer: DecoderLayer, count: int, out: Tensor) -> None:
        b, ff, width, hidden = self.b, layer.feed_forward, layer.config.intermediate_size, self.text.hidden_size
        gate, up = tensor_of(ff.gate), tensor_of(ff.up)
        self.run("gemm_gated", -(-count // 128), b.x, gate, up, b.inner, count, width, hidden, height=-(-width // 128))
        self._gemm(b.inner, [tensor_of(ff.down)], out, count, hidden, width)

    def _mixture(self, layer: DecoderLayer, ff: ExpertFeedForward, count: int) -> None:
        b, hidden, text = self.b, self.text.hidden_size, self.text
        e = b.experts
        assert e is not None
        inner = text.moe_intermediate_size
        self.run("norm_rows", count, b.h, b.y, layer.after, None, ff.before, b.x, ff.router_scale, b.z, hidden**-0.5,
                 ff.experts_before, e.inputs)  # fmt: skip
        self._gemm(b.z, [tensor_of(ff.router)], e.sums, count, text.num_experts, hidden)
        self.run("choose_rows", count, e.sums, ff.expert_scale, e.chosen, e.weight, e.counts)
        self.run("plan_experts", 1, e.counts, e.first, e.next, e.tile_expert, e.tile_row, e.tiles)
        self.run("place_rows", count, e.chosen, e.next, e.source, e.place)
        gate_up, down = tensor_of(ff.gate_up), tensor_of(ff.experts_down)
        self.run("gemm_experts_gated", e.tiles, e.inputs, gate_up, e.inner, e.source, e.first, e.tile_expert,
                 e.tile_row, height=-(-inner // 128))  # fmt: skip
        self.run("gemm_experts_down", e.tiles, e.inner, down, e.out, e.first, e.tile_expert, e.tile_row,
                 height=-(-hidden // 256))  # fmt: skip
        self._dense(layer, count, b.y)
        self.run("gather_experts", count, e.out, e.place, e.weight, b.z)
        self.run("join_branches", count, b.y, b.z, ff.dense_after, ff.experts_after, b.y)

    def _gemm(
        self, a: Tensor | None, matrices: list[Tensor | None], c: Tensor | None, rows: int, columns: int, inner: int,
        splits: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """c = a times the transposed matrices, which lie one below the other."""
        three = [*matrices, None, None][:3]
        first, second = splits if splits is not None else (columns, columns)
        tall = rows > 64 and -(-rows // 128) * -(-columns // 256) >= 96
        step, name = (128, "gemm_plain") if tall else (64, "gemm_low")
        self.run(name, -(-rows // step), a, *three, c, rows, columns, inner, first, second, height=-(-columns // 256))


def fits(config: LayerConfig, shared_bytes: int) -> bool:
    """Whether the attention kernel's tile has room in a block's shared memory."""
    return attention_bytes(config.head_dim) <= shared_bytes
