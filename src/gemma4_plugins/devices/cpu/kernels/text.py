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
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.steps import Hidden, Outcome
from gemma4_plugins.devices.cpu.kernels.build import load, loadable
from gemma4_plugins.devices.cpu.kernels.structs import Arena, CCall, CLayer, CStep, address, supported
from gemma4_plugins.devices.native.threads import runner

if TYPE_CHECKING:
    from gemma4_core.contracts.rows import Rows, SamplingRows
    from gemma4_core.contracts.steps import DecoderView, Slots, StepResult

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


def step(view: DecoderView, slots: Slots) -> CpuStep | None:
    """``Operations.step`` on the CPU."""
    return CpuStep(view, slots) if served(view) else None


def served(view: DecoderView) -> bool:
    """Weights stored in a way that the kernels read in place, and at most 16 experts per token."""
    return (
        loadable()
        and view.ple_host is None
        and all(supported(place.matrix) for place in view.places.values())
        and top_experts(view.text.config) <= LARGEST_TOP
    )


def top_experts(config: TextConfig) -> int:
    """Experts per token, 0 without a mixture."""
    return config.top_k_experts or 0 if config.enable_moe_block else 0


class Results:
    """Where calls leave what they chose, for so many rows: ids int32 ``[n]``, log-probabilities fp32 ``[n]`` and logits
    fp32 ``[n, V]``."""

    def __init__(self, rows: int, view: DecoderView) -> None:
        made = [((rows,), dtypes.int32), ((rows,), dtypes.float32), ((rows, view.vocab), dtypes.float32)]
        self.ids, self.logprobs, self.logits = (
            Tensor.zeros(*shape, dtype=dtype, device=view.device).contiguous().realize() for shape, dtype in made
        )

    def aim(self, step: CStep, row: int) -> None:
        """Let the next call write to a row."""
        size = 4 * int(self.logits.shape[1])
        step.token_out, step.logprob_out = address(self.ids) + 4 * row, address(self.logprobs) + 4 * row
        step.logits = address(self.logits) + size * row


class CpuStep:
    """One chunk of one slot, or one token of each of several, by calls of the kernels on every thread; logits and
    greedy tokens stay where they are as tensors."""

    max_rows, ahead = CHUNK, 0

    def __init__(self, view: DecoderView, slots: Slots) -> None:
        self.view, self.arena, self.threads = view, Arena(), machine.thread_count()
        self.program = load(SOURCES, ("YIELD_SYSCALL",))
        self.step, self.layers = fill_step(
            view.text, slots, self.arena, self.threads, slots.capacity + view.longest_chunk
        )
        fill_chunk_buffers(self.step, view.text, self.arena, view.longest_chunk)
        self.results: dict[int, Results] = {}
        """By the number of rows, a power of two."""
        suppressed = np.array(view.suppressed_ids, np.uint32)
        self.step.suppressed_count, self.step.suppressed = suppressed.size, self.arena.array(suppressed)

    def serves(self, rows: Rows, sampling: SamplingRows | None) -> bool:
        """See ``Step``."""
        both_ways = rows.media is not None and rows.media.sees_both_ways
        if len(rows.runs) == 1:
            return not both_ways or rows.count <= PICTURE
        return rows.count == len(rows.runs) == len(rows.wanted) and rows.media is None and sampling is not None

    def __call__(
        self, rows: Rows, sampling: SamplingRows | None, *, hidden: bool = False, logits: bool = False
    ) -> StepResult:
        """See ``Step``."""
        ids = np.ascontiguousarray(rows.ids.numpy() if isinstance(rows.ids, Tensor) else rows.ids, np.uint32)
        runs = rows.runs
        every = hidden or len(rows.wanted) > len(runs)
        results = self._results(len(runs))
        states = np.empty((rows.count, int(self.step.hidden)), np.float32) if every else None
        for number, run in enumerate(runs):
            results.aim(self.step, number)
            self._run(rows, run, ids[run], None if states is None else states[run])
        if not len(rows.wanted):
            return Hidden(None)
        if states is not None:
            return self._from_states(states[rows.wanted], rows, sampling)
        if sampling is None:
            return Hidden(None)
        if sampling.plain:
            return Outcome(results.ids, results.logprobs, logits=results.logits, count=len(rows.wanted))
        return self.view.choose(results.logits, rows, sampling)

    def _results(self, rows: int) -> Results:
        size = 1 << (rows - 1).bit_length()
        if size not in self.results:
            self.results[size] = Results(size, self.view)
        return self.results[size]

    def _run(self, rows: Rows, run: slice, ids: np.ndarray, states: np.ndarray | None) -> None:
        """The rows of one slot; their final hidden states fp32 ``[n, H]`` go to ``states``, where wanted."""
        self.step.layers = ctypes.addressof(self.layers[int(rows.slot[run.start])])
        start = int(rows.position[run.start])
        fields = {"start": start, "count": len(ids), "ids": ids.ctypes.data, "wanted": int(len(rows.wanted) > 0)}
        if len(ids) == 1 and states is None and rows.media is None:
            self.call(decode=1, **fields)
            return
        if states is not None:
            fields |= {"every": 1, "hidden": states.ctypes.data}
        kept = self._media(rows, start, fields)
        self.call(**fields)
        del kept

    def _from_states(self, states: np.ndarray, rows: Rows, sampling: SamplingRows | None) -> StepResult:
        """The result of rows with these hidden states, fp32 ``[M, H]``."""
        if sampling is None:
            return Hidden(upload(states, self.view.device))
        # graphs that choose are captured for few numbers of rows
        few = np.zeros((1 << (len(states) - 1).bit_length(), states.shape[1]), np.float32)
        few[: len(states)] = states
        given = upload(few, self.view.device)
        found = self.view.finish(given, rows, sampling)
        return Outcome(found.ids, found.logprobs, given, found.logits, len(states))

    def _media(self, rows: Rows, start: int, fields: dict[str, int]) -> list[np.ndarray]:
        """Add the soft tokens to a call's fields; the arrays that must live as long as the call."""
        if rows.media is None:
            return []
        media = rows.media
        soft = media.tokens.cast(dtypes.float32).numpy()[np.maximum(media.soft, 0)]
        marks = np.ascontiguousarray(media.soft >= 0, np.uint8)
        fields |= {"soft": soft.ctypes.data, "is_soft": marks.ctypes.data}
        if media.blocks is None or not media.sees_both_ways:
            return [soft, marks]
        until = np.ascontiguousarray(start + block_ends(media.blocks[None]), np.int32)
        fields["until"] = until.ctypes.data
        return [soft, marks, until]

    def call(self, **fields: int) -> None:
        """Run ``text_step`` on all threads and wait."""
        request = CCall(**fields)
        arguments = [ctypes.addressof(self.step), ctypes.addressof(request), 0]
        # parts wait for each other, so each needs a thread of its own
        self.step.threads = min(self.threads, runner.threads)
        if not runner.run(self.program, arguments, len(arguments) - 1, self.step.threads):
            self.step.threads = 1
            self.program.fxn(*map(ctypes.c_uint64, arguments))


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


def fill_step(
    text: TextDecoder, slots: Slots, arena: Arena, threads: int, positions: int
) -> tuple[CStep, list[ctypes.Array[CLayer]]]:
    """The C description of a model, and that of its layers for each slot."""
    config = text.config
    table = text.rotation_table(positions)
    angles = {full: tuple(arena.vector(t) for t in (table.full if full else table.sliding)) for full in (False, True)}
    layers = (CLayer * len(text.layers))(
        *(fill_layer(text, i, slots, arena, angles) for i in range(len(text.layers)))
    )
    by_slot = [layers, *(shifted(text, layers, slots, slot) for slot in range(1, slots.count))]
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
    return step, by_slot


def own_cache(text: TextDecoder, index: int, slots: Slots) -> Tensor:
    """The buffers that a layer reads: its own, or its donor's."""
    config = text.layers[index].config
    held = slots.layers[config.donor if config.donor is not None else index]
    assert held is not None
    return held


def shifted(
    text: TextDecoder, layers: ctypes.Array[CLayer], slots: Slots, slot: int
) -> ctypes.Array[CLayer]:
    """The layers of slot 0 as those of another one."""
    made = type(layers).from_buffer_copy(layers)
    for index, layer in enumerate(made):
        size = int(own_cache(text, index, slots).nbytes()) // slots.count
        layer.keys, layer.values = layer.keys + slot * size, layer.values + slot * size
    return made


def fill_layer(
    text: TextDecoder, index: int, slots: Slots, arena: Arena, angles: dict[bool, tuple[int, ...]]
) -> CLayer:
    """One layer with the keys and values of slot 0."""
    layer: DecoderLayer = text.layers[index]
    config, attention, ff = layer.config, layer.attention, layer.feed_forward
    held = own_cache(text, index, slots)
    half = int(held.nbytes()) // slots.count // 2
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
