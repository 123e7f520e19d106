"""A whole decode step as one C call per thread; see ``decode.c``."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.config import TextConfig
from gemma4_core.model.decoder import TextDecoder, rounded
from gemma4_core.model.layers import DecoderLayer, ExpertFeedForward
from gemma4_core.ops.sampling import SamplingState
from gemma4_plugins.kernels.cpu.build import load, loadable
from gemma4_plugins.kernels.cpu.structs import Arena, CLayer, CStep, address, supported

if TYPE_CHECKING:
    from gemma4_core.generation.engine import DecodeStep, Engine
    from gemma4_core.model.cache import Storage

LARGEST_TOP = 16
SPLITS = 64


def thread_count() -> int:
    """Cores that this process may run on, or GEMMA4_THREADS."""
    asked = os.environ.get("GEMMA4_THREADS", "")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(asked), 256)) if asked.isdigit() else allowed


def decode_step(engine: Engine, storage: Storage, sampled: bool) -> DecodeStep | None:
    """The step for these buffers, or None where the kernels do not serve the model."""
    model = engine.model
    text = model.text
    served = (
        loadable() and storage.batch == 1 and model.ple_host is None
        and all(supported(place.matrix) for place in model.places.values())
        and top_experts(text.config) <= LARGEST_TOP
    )
    if not served:
        return None
    return CpuStep(engine, storage, sampled)


def top_experts(config: TextConfig) -> int:
    """Experts per token, 0 without a mixture."""
    return config.top_k_experts or 0 if config.enable_moe_block else 0


class CpuStep:
    """Calls the kernel on every thread and hands its results on as tensors that stay where they are."""

    def __init__(self, engine: Engine, storage: Storage, sampled: bool) -> None:
        self.engine, self.storage, self.arena = engine, storage, Arena()
        self.threads = thread_count()
        self.function: Callable[..., None] = load("decode.c", ("YIELD_SYSCALL",))
        model, vocab = engine.model, engine.vocab
        empty = lambda *shape, dtype: Tensor.zeros(*shape, dtype=dtype, device=model.device).contiguous().realize()  # noqa: E731
        self.token, self.logprob = empty(1, 1, dtype=dtypes.int32), empty(1, 1, dtype=dtypes.float32)
        self.logits = empty(1, vocab, dtype=dtypes.float32)
        self.choose = engine.chooser() if sampled else None
        self.step = fill_step(model.text, storage, self.arena, self.threads, not sampled, storage.capacity + model.chunk)
        self.step.token_out, self.step.logprob_out = address(self.token), address(self.logprob)
        self.step.logits = address(self.logits)
        suppressed = np.array(model.generation_config.suppress_tokens, np.uint32)
        self.step.suppressed_count, self.step.suppressed = suppressed.size, self.arena.array(suppressed)
        self.pool = ThreadPoolExecutor(self.threads - 1, "gemma4-cpu") if self.threads > 1 else None

    def __call__(self, token: Tensor, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
        self.step.token_in = address(token)
        at = ctypes.c_uint64(position)
        where = ctypes.c_uint64(ctypes.addressof(self.step))
        waiting = [
            self.pool.submit(self.function, where, at, ctypes.c_uint64(thread)) for thread in range(1, self.threads)
        ] if self.pool else []
        self.function(where, at, ctypes.c_uint64(0))
        for future in waiting:
            future.result()
        if self.choose is not None:
            return self.choose(self.logits, position + 1, state)
        return self.token, self.logprob


def fill_step(
    text: TextDecoder, storage: Storage, arena: Arena, threads: int, greedy: bool, positions: int
) -> CStep:
    """The C description of a model and a cache's buffers."""
    config = text.config
    table = text.rotation_table(positions)
    angles = {
        full: tuple(arena.vector(t) for t in (table.full if full else table.sliding)) for full in (False, True)
    }
    layers = (CLayer * len(text.layers))(*(fill_layer(text, i, storage, arena, angles) for i in range(len(text.layers))))
    arena.kept.append(layers)
    width = max(layer.intermediate_size for layer in config.layers)
    heads = max(config.num_attention_heads * layer.head_dim for layer in config.layers)
    experts = top_experts(config) * (config.moe_intermediate_size or 0)
    step = CStep(
        layers=ctypes.addressof(layers), layer_count=len(layers), hidden=config.hidden_size,
        heads=config.num_attention_heads, vocab=config.vocab_size, ple=config.hidden_size_per_layer_input,
        experts=config.num_experts or 0 if config.enable_moe_block else 0, top=top_experts(config),
        expert_ff=config.moe_intermediate_size or 0 if config.enable_moe_block else 0,
        kv_type=0 if text.dtype == dtypes.float32 else 1, threads=threads, greedy=int(greedy),
        eps=config.rms_norm_eps, embed_scale=rounded(config.hidden_size**0.5, text.dtype),
        softcap=config.final_logit_softcapping or 0.0, norm=arena.vector(text.norm),
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
    sizes = {"q": heads, "k": heads, "v": heads, "mixed": heads, "a": largest, "b": largest, "act": largest,
             "ple_ctx": rows, "ple_in": rows, "scores": parts, "router_out": config.num_experts or 1}
    for name, size in sizes.items():
        setattr(step, name, arena.floats(size))
    step.scratch_per_thread = (3 * config.hidden_size + 2 * largest + 8 * 1024 + 63) // 16 * 16
    step.scratch = arena.floats(threads * step.scratch_per_thread)
    step.partial, step.sync = arena.floats(threads * 16), arena.floats(96)
    return step


def fill_layer(
    text: TextDecoder, index: int, storage: Storage, arena: Arena, angles: dict[bool, tuple[int, ...]]
) -> CLayer:
    """One layer; a shared layer reads its donor's keys and values."""
    layer: DecoderLayer = text.layers[index]
    config, attention, ff = layer.config, layer.attention, layer.feed_forward
    held = storage.layers[config.donor if config.donor is not None else index]
    assert held is not None
    half = int(held.nbytes()) // 2
    out = CLayer(
        q=arena.matrix(attention.q_proj.matrix), o=arena.matrix(attention.o_proj.matrix),
        gate=arena.matrix(ff.gate.matrix), up=arena.matrix(ff.up.matrix), down=arena.matrix(ff.down.matrix),
        q_norm=arena.vector(attention.q_norm), in_norm=arena.vector(layer.before), attn_norm=arena.vector(layer.after),
        pre_ff=arena.vector(ff.before), post_ff=arena.vector(ff.after), cos=angles[config.is_full][0],
        sin=angles[config.is_full][1], keys=address(held), values=address(held) + half,
        scalar=float(layer.scalar.cast(dtypes.float32).numpy()[0]), head_dim=config.head_dim,
        kv_heads=config.num_key_value_heads, slots=int(held.shape[3]), window=config.window or 0,
        ff=config.intermediate_size,
    )
    if not config.is_shared:
        out.k, out.k_norm = arena.matrix(attention.k_proj.matrix), arena.vector(attention.k_norm)
        out.v = arena.matrix(attention.v_proj.matrix if attention.v_proj is not None else None)
    if layer.per_layer is not None:
        out.ple_gate, out.ple_proj = (arena.matrix(w.matrix) for w in (layer.per_layer.gate, layer.per_layer.projection))
        out.ple_norm = arena.vector(layer.per_layer.after)
    if isinstance(ff, ExpertFeedForward):
        out.router, out.expert_gate_up = arena.matrix(ff.router.matrix), arena.matrix(ff.gate_up.matrix)
        out.expert_down = arena.matrix(ff.experts_down.matrix)
        out.post_ff1, out.pre_ff2, out.post_ff2 = map(arena.vector, (ff.dense_after, ff.experts_before, ff.experts_after))
        out.router_scale, out.expert_scale = arena.vector(ff.router_scale), arena.vector(ff.expert_scale)
    return out
