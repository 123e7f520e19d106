"""The text model as one C call per thread, for a position or a chunk of a prompt; see ``entry.c``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.config import TextConfig
from gemma4_core.devices import machine
from gemma4_core.model.decoder import TextDecoder, rounded
from gemma4_core.model.ids import block_ends
from gemma4_core.model.layers import DecoderLayer, ExpertFeedForward
from gemma4_core.ops.sampling import SamplingState
from gemma4_core.ops.steps import Chunk, PrefillResult
from gemma4_plugins.devices.cpu.kernels.build import load, loadable
from gemma4_plugins.devices.cpu.kernels.structs import Arena, CCall, CLayer, CStep, address, supported
from gemma4_plugins.devices.native.threads import runner

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import CacheBuffers, ChunkStep, DecoderView, DecodeStep

SOURCES = (
    "entry.c", "maths.c", "products.c", "attention.c", "layers.c", "decode.c",
    "transpose.c", "amx.c", "panels.c", "rows.c", "chunk.c",
)  # fmt: skip
# sizes that the C sources fix
LARGEST_TOP = 16
SPLITS = 64
PANEL, DEPTH, HEAD_BLOCK, SLOTS, ATTENDED = 64, 256, 256, 64, 120
CHUNK = 256
"""Prompt positions per call."""
PICTURE = 1152
"""Positions of a call with tokens of a picture that see those behind them: the largest picture has 1120."""


def kernels(view: DecoderView, storage: CacheBuffers) -> CpuText | None:
    """The kernels set up for these buffers, or None where they do not serve the model. Made once per storage."""
    if "cpu" not in storage.graphs:
        storage.graphs["cpu"] = CpuText(view, storage) if served(view, storage) else None
    return storage.graphs["cpu"]  # type: ignore[return-value]


def served(view: DecoderView, storage: CacheBuffers) -> bool:
    """One row, weights stored in a way that the kernels read in place, and at most 16 experts per token."""
    return (
        loadable()
        and storage.batch == 1
        and view.ple_host is None
        and all(supported(place.matrix) for place in view.places.values())
        and top_experts(view.text.config) <= LARGEST_TOP
    )


def decode_step(view: DecoderView, storage: CacheBuffers, sampled: bool) -> DecodeStep | None:
    """``Operations.decode_step`` on the CPU."""
    text = kernels(view, storage)
    if text is None:
        return None

    def step(token: Tensor, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
        text.call(decode=1, start=position, count=1, wanted=1, ids=address(token))
        return text.finished().choose(view, position + 1, state)

    return step


def prefill(view: DecoderView, storage: CacheBuffers) -> ChunkStep | None:
    """``Operations.prefill`` on the CPU."""
    text = kernels(view, storage)
    return None if text is None else text.chunk


def top_experts(config: TextConfig) -> int:
    """Experts per token, 0 without a mixture."""
    return config.top_k_experts or 0 if config.enable_moe_block else 0


class CpuText:
    """Calls the kernels on every thread; logits and the greedy token stay where they are as tensors."""

    def __init__(self, view: DecoderView, storage: CacheBuffers) -> None:
        self.arena, self.threads = Arena(), machine.thread_count()
        self.program = load(SOURCES, ("YIELD_SYSCALL",))
        empty = lambda *shape, dtype: Tensor.zeros(*shape, dtype=dtype, device=view.device).contiguous().realize()  # noqa: E731
        self.token, self.logprob = empty(1, 1, dtype=dtypes.int32), empty(1, 1, dtype=dtypes.float32)
        self.logits = empty(1, view.vocab, dtype=dtypes.float32)
        self.step = fill_step(view.text, storage, self.arena, self.threads, storage.capacity + view.longest_chunk)
        fill_chunk_buffers(self.step, view.text, self.arena, view.longest_chunk)
        self.step.token_out, self.step.logprob_out = address(self.token), address(self.logprob)
        self.step.logits = address(self.logits)
        suppressed = np.array(view.suppressed_ids, np.uint32)
        self.step.suppressed_count, self.step.suppressed = suppressed.size, self.arena.array(suppressed)

    def call(self, **fields: int) -> None:
        """Run ``text_step`` on all threads and wait."""
        request = CCall(**fields)
        arguments = [ctypes.addressof(self.step), ctypes.addressof(request), 0]
        # parts wait for each other, so each needs a thread of its own
        self.step.threads = min(self.threads, runner.threads)
        if not runner.run(self.program, arguments, len(arguments) - 1, self.step.threads):
            self.step.threads = 1
            self.program.fxn(*map(ctypes.c_uint64, arguments))

    def finished(self) -> PrefillResult:
        """The outcome of a call that ends with logits."""
        return PrefillResult(self.logits, self.token, self.logprob)

    def chunk(
        self, chunk: Chunk, start: int, soft_tokens: Tensor | None, every: bool, wanted: bool
    ) -> Tensor | PrefillResult:
        """Append a chunk at ``start``; see ``Operations.prefill``."""
        ids = np.ascontiguousarray(chunk.ids[0], np.uint32)
        count, hidden_size = len(ids), int(self.step.hidden)
        fields = {"start": start, "count": count, "every": int(every), "wanted": int(wanted), "ids": ids.ctypes.data}
        hidden = np.empty((1, count, hidden_size), np.float32) if every else None
        if hidden is not None:
            fields["hidden"] = hidden.ctypes.data
        if chunk.blocks is not None and chunk.sees_both_ways:
            until = np.ascontiguousarray(start + block_ends(chunk.blocks), np.int32)
            fields["until"] = until.ctypes.data
        if chunk.soft is not None and soft_tokens is not None:
            rows = soft_tokens.cast(dtypes.float32).numpy()[np.maximum(chunk.soft[0], 0)]
            marks = np.ascontiguousarray(chunk.soft[0] >= 0, np.uint8)
            fields |= {"soft": rows.ctypes.data, "is_soft": marks.ctypes.data}
        self.call(**fields)
        return self.finished() if hidden is None else Tensor(hidden, device=self.logits.device)


def fill_chunk_buffers(step: CStep, text: TextDecoder, arena: Arena, count: int) -> None:
    """Memory for ``count`` rows at a time; sizes follow ``chunk.c``."""
    config = text.config
    hidden, experts = config.hidden_size, config.num_experts or 0 if config.enable_moe_block else 0
    top, inner = top_experts(config), config.moe_intermediate_size or 0
    heads = max(config.num_attention_heads * layer.head_dim for layer in config.layers)
    kv = max(layer.num_key_value_heads * layer.head_dim for layer in config.layers)
    width = max(layer.intermediate_size for layer in config.layers)
    pad = lambda n: (n + 31) // 32 * 32  # noqa: E731
    step.chunk_h, step.chunk_x = arena.floats(count * hidden), arena.floats(count * max(hidden, experts))
    wide = max(heads + 2 * kv, width, config.hidden_size_per_layer_input, 2 * top + top * hidden)
    step.chunk_wide, step.chunk_other = arena.floats(count * wide), arena.floats(count * max(heads, hidden))
    step.chunk_ple = arena.floats(count * len(config.layers) * config.hidden_size_per_layer_input)
    step.chunk_ready = arena.floats(count * pad(max(hidden, heads, width)))
    widest = max(layer.head_dim for layer in config.layers)
    sums = max(2 * count * PANEL, hidden, ATTENDED * (2 * widest + 2 * SLOTS + 4))
    expert = count * (top + pad(hidden) + pad(inner)) if top else 0
    step.chunk_room_per_thread = 4 * ((DEPTH * PANEL + sums + expert + 31) // 16 * 16)
    step.chunk_room = arena.floats(step.threads * step.chunk_room_per_thread // 4)
    step.first_shared = next((layer.index for layer in config.layers if layer.is_shared), len(config.layers))


def fill_step(text: TextDecoder, storage: CacheBuffers, arena: Arena, threads: int, positions: int) -> CStep:
    """The C description of a model and a cache's buffers."""
    config = text.config
    table = text.rotation_table(positions)
    angles = {full: tuple(arena.vector(t) for t in (table.full if full else table.sliding)) for full in (False, True)}
    layers = (CLayer * len(text.layers))(
        *(fill_layer(text, i, storage, arena, angles) for i in range(len(text.layers)))
    )
    arena.references.append(layers)
    width = max(layer.intermediate_size for layer in config.layers)
    heads = max(config.num_attention_heads * layer.head_dim for layer in config.layers)
    experts = top_experts(config) * (config.moe_intermediate_size or 0)
    step = CStep(
        layers=ctypes.addressof(layers),
        layer_count=len(layers),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        vocab=config.vocab_size,
        ple=config.hidden_size_per_layer_input,
        experts=config.num_experts or 0 if config.enable_moe_block else 0,
        top=top_experts(config),
        expert_ff=config.moe_intermediate_size or 0 if config.enable_moe_block else 0,
        kv_type=0 if text.dtype == dtypes.float32 else 1,
        threads=threads,
        greedy=1,
        eps=config.rms_norm_eps,
        embed_scale=rounded(config.hidden_size**0.5, text.dtype),
        softcap=config.final_logit_softcapping or 0.0,
        norm=arena.vector(text.norm),
        embed=arena.matrix(text.embedding.matrix),
    )
    if config.hidden_size_per_layer_input:
        assert text.ple_table is not None
        step.ple_scale = rounded(config.hidden_size_per_layer_input**0.5, text.dtype)
        step.ple_table = arena.matrix(text.ple_table.matrix)
        step.ple_model_proj = arena.matrix(text.ple_projection.matrix)
        step.ple_proj_norm = arena.vector(text.ple_norm)
    rows = len(layers) * config.hidden_size_per_layer_input
    largest = max(width, heads, experts, config.hidden_size, config.hidden_size_per_layer_input)
    parts = max(config.num_attention_heads * SPLITS * (layer.head_dim + 2) for layer in config.layers)
    sizes = {
        "q": heads,
        "k": heads,
        "v": heads,
        "mixed": heads,
        "a": largest,
        "b": largest,
        "act": largest,
        "ple_ctx": rows,
        "ple_in": rows,
        "scores": parts,
        "router_out": config.num_experts or 1,
    }
    for name, size in sizes.items():
        setattr(step, name, arena.floats(size))
    step.scratch_per_thread = (3 * config.hidden_size + 2 * largest + 8 * 1024 + 63) // 16 * 16
    step.scratch = arena.floats(threads * step.scratch_per_thread)
    step.partial, step.sync = arena.floats(-(-config.vocab_size // HEAD_BLOCK) * 4), arena.floats(96)
    return step


def fill_layer(
    text: TextDecoder, index: int, storage: CacheBuffers, arena: Arena, angles: dict[bool, tuple[int, ...]]
) -> CLayer:
    """One layer; a shared layer reads its donor's keys and values."""
    layer: DecoderLayer = text.layers[index]
    config, attention, ff = layer.config, layer.attention, layer.feed_forward
    held = storage.layers[config.donor if config.donor is not None else index]
    assert held is not None
    half = int(held.nbytes()) // 2
    out = CLayer(
        q=arena.matrix(attention.q_proj.matrix),
        o=arena.matrix(attention.o_proj.matrix),
        gate=arena.matrix(ff.gate.matrix),
        up=arena.matrix(ff.up.matrix),
        down=arena.matrix(ff.down.matrix),
        q_norm=arena.vector(attention.q_norm),
        in_norm=arena.vector(layer.before),
        attn_norm=arena.vector(layer.after),
        pre_ff=arena.vector(ff.before),
        post_ff=arena.vector(ff.after),
        cos=angles[config.is_full][0],
        sin=angles[config.is_full][1],
        keys=address(held),
        values=address(held) + half,
        scalar=float(layer.scalar.cast(dtypes.float32).numpy()[0]),
        head_dim=config.head_dim,
        kv_heads=config.num_key_value_heads,
        slots=int(held.shape[3]),
        window=config.window or 0,
        ff=config.intermediate_size,
    )
    if not config.is_shared:
        out.k, out.k_norm = arena.matrix(attention.k_proj.matrix), arena.vector(attention.k_norm)
        out.v = arena.matrix(attention.v_proj.matrix if attention.v_proj is not None else None)
    if layer.per_layer is not None:
        out.ple_gate, out.ple_proj = (
            arena.matrix(w.matrix) for w in (layer.per_layer.gate, layer.per_layer.projection)
        )
        out.ple_norm = arena.vector(layer.per_layer.after)
    if isinstance(ff, ExpertFeedForward):
        out.router, out.expert_gate_up = arena.matrix(ff.router.matrix), arena.matrix(ff.gate_up.matrix)
        out.expert_down = arena.matrix(ff.experts_down.matrix)
        out.post_ff1, out.pre_ff2, out.post_ff2 = map(
            arena.vector, (ff.dense_after, ff.experts_before, ff.experts_after)
        )
        out.router_scale, out.expert_scale = arena.vector(ff.router_scale), arena.vector(ff.expert_scale)
    return out
