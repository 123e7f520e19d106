"""The text model as one C call per thread, for rows of one or several slots; see ``entry.c``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
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
from gemma4_plugins.devices.cpu.kernels.structs import Arena, CCall, CLayer, CStep, address, supported, values
from gemma4_plugins.devices.native.threads import runner

if TYPE_CHECKING:
    from gemma4_core.contracts.rows import Rows, SamplingRows
    from gemma4_core.contracts.steps import DecoderView, Slots, StepResult

SOURCES = (
    "entry.c", "maths.c", "products.c", "attention.c", "layers.c", "choose.c", "decode.c", "transpose.c", "amx.c",
    "panels.c", "few.c", "few_tiles.c", "rows.c", "multiply.c", "slots.c", "chunk_experts.c", "chunk.c",
)  # fmt: skip
# sizes that the C sources fix
LARGEST_TOP = 16
SPLITS = 64
PANEL, DEPTH, HEAD_BLOCK, SLOTS, ATTENDED = 64, 256, 256, 64, 120
MOST_FEW = 64
"""The largest FEW of ``few.c``."""
OWN_FLOATS = 12288 + 36 * 16 + 16 * 4096
"""Of ``multiply.c``."""
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

    def __init__(self, rows: int, view: DecoderView, arena: Arena) -> None:
        made = [((rows,), np.int32), ((rows,), np.float32), ((rows, view.vocab), np.float32)]
        self.ids, self.logprobs, self.logits = (upload(np.zeros(shape, dtype), view.device) for shape, dtype in made)
        self.numbers = (
            np.ctypeslib.as_array((ctypes.c_int32 * rows).from_address(address(self.ids))),
            np.ctypeslib.as_array((ctypes.c_float * rows).from_address(address(self.logprobs))),
        )
        """The first two where they lie: reading a tensor takes a millisecond."""
        self.fields = {
            "tokens": address(self.ids), "logprobs": address(self.logprobs), "logits": address(self.logits),
            "partial": arena.floats(rows * -(-view.vocab // HEAD_BLOCK) * 4),
        }  # fmt: skip


@dataclass(frozen=True)
class Chosen(Outcome):
    """What a call left in its results."""

    numbers: tuple[np.ndarray, np.ndarray] = ()  # type: ignore[assignment]

    def read(self) -> list[tuple[int, float]]:
        """See ``StepResult.read``."""
        ids, logprobs = self.numbers
        return list(zip(ids[: self.count].tolist(), logprobs[: self.count].tolist(), strict=True))


class CpuStep:
    """Rows of any slots by one call of the kernels on every thread; logits and choices stay where they are."""

    max_rows, ahead = CHUNK, 0

    def __init__(self, view: DecoderView, slots: Slots) -> None:
        self.view, self.arena, self.threads = view, Arena(), machine.thread_count()
        self.program = load(SOURCES, ("YIELD_SYSCALL",))
        self.step, self.layers = fill_step(
            view.text, slots, self.arena, self.threads, slots.capacity + view.longest_chunk
        )
        self.room = max(view.longest_chunk, CHUNK if slots.count > 1 else 1)
        """Rows of a call."""
        fill_chunk_buffers(self.step, view.text, self.arena, self.room)
        self.step.slots = self.arena.array(np.array([ctypes.addressof(layers) for layers in self.layers], np.uint64))
        self.results: dict[int, Results] = {}
        """By the number of rows, a power of two."""
        suppressed = np.array(view.suppressed_ids, np.uint32)
        self.step.suppressed_count, self.step.suppressed = suppressed.size, self.arena.array(suppressed)

    def serves(self, rows: Rows, sampling: SamplingRows | None) -> bool:
        """See ``Step``."""
        return rows.count <= self.room

    def __call__(
        self, rows: Rows, sampling: SamplingRows | None, *, hidden: bool = False, logits: bool = False
    ) -> StepResult:
        """See ``Step``."""
        wanted, choosing = len(rows.wanted), sampling is not None and len(rows.wanted) > 0
        fields, given = self._rows(rows)
        results = self._results(wanted) if choosing else None
        if results is not None:
            fields |= results.fields
            fields |= self._sampling(rows, sampling, given)
        states = None
        if wanted and (hidden or sampling is None):
            states = np.empty((wanted, int(self.step.hidden)), np.float32)
            fields["hidden"] = states.ctypes.data
        if rows.media is not None:
            fields |= self._media(rows, given)
        fields["decode"] = int(rows.count == 1 and choosing and states is None and rows.media is None)
        self.call(**fields)
        uploaded = None if states is None else upload(states, self.view.device)
        if results is None:
            return Hidden(uploaded)
        return Chosen(results.ids, results.logprobs, uploaded, results.logits, wanted, results.numbers)

    def _results(self, rows: int) -> Results:
        size = 1 << (rows - 1).bit_length()
        if size not in self.results:
            self.results[size] = Results(size, self.view, self.arena)
        return self.results[size]

    @staticmethod
    def _rows(rows: Rows) -> tuple[dict[str, int], list[np.ndarray]]:
        """A call's fields for the rows; the arrays that must live as long as the call."""
        ids = rows.ids.numpy() if isinstance(rows.ids, Tensor) else rows.ids
        runs = rows.runs
        arrays = {
            "ids": ids,
            "slot": rows.slot,
            "position": rows.position,
            "first": [run.start for run in runs] + [rows.count],
            "wanted": rows.wanted,
            "wanted_slot": rows.slot[rows.wanted],
            "wanted_position": rows.position[rows.wanted],
            "alone": np.arange(len(rows.wanted) + 1),
        }
        given = {name: np.ascontiguousarray(array, np.int32) for name, array in arrays.items()}
        counts = {"count": rows.count, "runs": len(runs), "wanted_count": len(rows.wanted)}
        return counts | {name: array.ctypes.data for name, array in given.items()}, list(given.values())

    @staticmethod
    def _sampling(rows: Rows, sampling: SamplingRows | None, given: list[np.ndarray]) -> dict[str, int]:
        """A call's fields for how the rows choose, none where all take their largest logit."""
        if sampling is None or sampling.plain:
            return {}
        arrays = {"params": sampling.params.astype(np.float32), "seed": sampling.seed.astype(np.uint32)}
        if sampling.mask is not None:
            arrays["mask"] = sampling.mask.astype(np.uint32)
        fields = {name: address(table) for name, table in (("counts", sampling.counts), ("bias", sampling.bias))
                  if table is not None}  # fmt: skip
        if sampling.drafted is not None:
            arrays["drafted"] = sampling.drafted.astype(np.int32)
            fields["drafts"] = sampling.drafted.shape[1]
        held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        given += held.values()
        return fields | {name: array.ctypes.data for name, array in held.items()}

    @staticmethod
    def _media(rows: Rows, given: list[np.ndarray]) -> dict[str, int]:
        """A call's fields for the soft tokens."""
        media = rows.media
        assert media is not None
        held = [
            np.ascontiguousarray(media.tokens.cast(dtypes.float32).numpy()[np.maximum(media.soft, 0)]),
            np.ascontiguousarray(media.soft >= 0, np.uint8),
        ]
        fields = {"soft": held[0].ctypes.data, "is_soft": held[1].ctypes.data}
        if media.blocks is not None and media.sees_both_ways:
            ends = [rows.position[run.start] + block_ends(media.blocks[None, run]) for run in rows.runs]
            held.append(np.ascontiguousarray(np.concatenate(ends), np.int32))
            fields["until"] = held[2].ctypes.data
        given += held
        return fields

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
    longest = pad(max(hidden, heads, width, config.hidden_size_per_layer_input))
    step.chunk_ready, step.chunk_marks = arena.floats(count * longest), arena.floats(count * 4)
    step.chunk_tiles = arena.floats((min(count, MOST_FEW) + 16) * longest)
    step.chunk_own = arena.floats(step.threads * OWN_FLOATS)
    widest = max(layer.head_dim for layer in config.layers)
    step.chunk_parts = arena.floats((count + SPLITS) * config.num_attention_heads * (widest + 2))
    sums = max(2 * count * PANEL, hidden, ATTENDED * (2 * widest + 2 * SLOTS + 4))
    expert = 64 + count * (top + 4 + pad(inner)) + (2 * count + 16) * max(pad(hidden), pad(inner)) if top else 0
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
    step.choosing, step.sync = arena.floats(threads * config.vocab_size), arena.floats(96)
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
        scalar=float(values(layer.scalar)[0]),
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
