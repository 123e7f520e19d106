"""Captured graphs over one model: prefill chunks and decode steps.

Graphs are captured against a cache's buffers and stay with them, so that a later call with buffers of the same
capacity captures and compiles nothing. Tokens stay on the device between steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, UOp, dtypes
from tinygrad.dtype import DType

from gemma4_core.engine.graph_cache import GraphCache, can_be_stored
from gemma4_core.engine.view import ModelView
from gemma4_core.model.cache import GemmaCache, Storage
from gemma4_core.model.ids import split
from gemma4_core.model.media import PlacedPrompt, put_soft
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.spans import ChunkSpan, TokenSpan
from gemma4_core.ops import LAYER_KERNELS
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.sampling import SamplingState
from gemma4_core.ops.steps import Chunk, PrefillResult
from gemma4_core.processing.tower_graphs import put_rows

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import ChunkStep, DecodeStep

HEAD_ROWS = 128
"""Positions whose logits one graph makes."""
POSITION_LIMIT = 1 << 20
"""Upper bound of the symbolic position; no context is longer."""


def first_position(storage: Storage, position: int) -> UOp:
    """Where a call begins, as graphs take it. tinygrad plans memory for the largest value: a chunk's scores for as many
    positions as the buffers hold, not for the longest context that there could be."""
    return UOp.variable("start", 0, storage.capacity).bind(position)


@dataclass(frozen=True)
class ChunkInputs:
    """The tensors that a chunk's graph takes; those that a model has no use for are None."""

    ids: Tensor
    """int32 ``[B, T]``, the pad id where a soft token stands."""
    ple_rows: Tensor | None = None
    """``[B, T, layers * P]`` where the per-layer table is not on the device."""
    soft_rows: Tensor | None = None
    """``[B, T, H]``: the soft token at each position, anything for text."""
    is_soft: Tensor | None = None
    """int32 ``[B, T]``: 1 at soft tokens."""
    blocks: Tensor | None = None
    """int32 ``[B, T]``: media block, -1 elsewhere."""


@dataclass(frozen=True)
class TokenInputs:
    """The tensors that a decode step's graph takes."""

    token: Tensor
    """int32 ``[B, 1]``."""
    ple_rows: Tensor | None = None
    """``[B, 1, layers * P]`` where the per-layer table is not on the device."""
    params: Tensor | None = None
    seed: Tensor | None = None
    seen: Tensor | None = None
    """The sampling state's; None for a greedy step."""


def tensors(inputs: ChunkInputs | TokenInputs) -> dict[str, Tensor]:
    """The inputs that are there, as tinygrad's graphs take them: by name, in one dictionary."""
    return {name: tensor for name, tensor in vars(inputs).items() if tensor is not None}


class Engine:
    """Runs chunks and steps for one model."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.vocab = model.config.text_config.vocab_size
        self.view = ModelView(model, self)
        """What devices get of this engine and its model."""

    # ------------------------------------------------------------------------------------------- prefill

    def append_prompt(self, cache: GemmaCache, placed: PlacedPrompt, skip: int = 0) -> Tensor | PrefillResult:
        """Append a prompt from position ``skip`` on, chunk by chunk; the last position's hidden state ``[B, 1, H]``, or
        what the device made of it."""
        total, hidden = placed.ids.shape[1], None
        for start, stop in self._chunks(cache, placed, skip):
            chunk = placed.chunk(start, stop)
            hidden = self.append(cache, chunk, placed.soft_tokens, wanted=stop == total)
        assert hidden is not None
        return hidden

    def hidden_states(self, cache: GemmaCache, placed: PlacedPrompt) -> tuple[np.ndarray, DType]:
        """Append a prompt; its final hidden states fp32 ``[B, T, H]`` on the host, and the dtype that they had on the
        device."""
        parts: list[np.ndarray] = []
        dtype = self.model.dtype
        for start, stop in self._chunks(cache, placed, 0):
            hidden = self.append(cache, placed.chunk(start, stop), placed.soft_tokens, every=True)
            assert isinstance(hidden, Tensor)
            parts.append(hidden.numpy().astype(np.float32, copy=False)[:, : stop - start])
            dtype = hidden.dtype
        return np.concatenate(parts, 1), dtype

    def _chunks(self, cache: GemmaCache, placed: PlacedPrompt, skip: int) -> list[tuple[int, int]]:
        """First positions and ends of the chunks that a prompt goes through, no media block cut."""
        batch, total = placed.ids.shape
        storage = cache.reserve(self.model, batch, cache.length + total - skip)
        blocks = None if placed.blocks is None else placed.blocks[:, skip:]
        runs = split(total - skip, self.chunk_size(storage), blocks)
        return [(skip + start, skip + stop) for start, stop in runs]

    def append(
        self,
        cache: GemmaCache,
        chunk: Chunk,
        soft_tokens: Tensor | None = None,
        *,
        every: bool = False,
        wanted: bool = True,
    ) -> Tensor | PrefillResult:
        """Append a chunk and return final hidden states: ``[B, n, H]`` with ``every``, perhaps with further rows of
        padding, else the last ``[B, 1, H]`` or what the device made of it. Without ``wanted`` only keys and values
        matter."""
        batch, count = chunk.ids.shape
        storage = cache.reserve(self.model, batch, cache.length + count)
        most = self.model.operations.prefill_both_ways if chunk.sees_both_ways else count
        step = self._own_prefill(storage) if count <= most else None
        if step is not None:
            hidden = step(chunk, cache.length, soft_tokens, every, wanted)
        elif every and count == 1 and chunk.soft is None:
            hidden = self.hidden_step(storage, cache.length, chunk.ids)
        else:
            hidden = self.append_portable(storage, cache.length, chunk, soft_tokens, every)
        cache.note(chunk.signature)
        return hidden

    def chunk_size(self, storage: Storage) -> int:
        """Positions that go through one call for a prompt."""
        own = self._own_prefill(storage) is not None
        return self.model.chunk if own else min(self.model.chunk, self.model.operations.graph_chunk)

    def _own_prefill(self, storage: Storage) -> ChunkStep | None:
        own = self.model.operations.prefill
        return own(self.view, storage) if own is not None else None

    def append_portable(
        self, storage: Storage, at: int, chunk: Chunk, soft_tokens: Tensor | None, every: bool
    ) -> Tensor:
        """The portable form of ``append``, at position ``at`` of these buffers."""
        count, size = chunk.ids.shape[1], self.chunk_size(storage)
        length = -(-count // size) * size
        media, blocked = chunk.soft is not None, self.model.bidirectional
        graph = self._chunk_graph(storage, length, media, blocked, every)

        def pad(array: np.ndarray, fill: int) -> np.ndarray:
            return np.pad(array, [*[(0, 0)] * (array.ndim - 1), (0, length - count)], constant_values=fill)

        rows = is_soft = marks = None
        if media:
            assert chunk.soft is not None and soft_tokens is not None
            soft = pad(chunk.soft, -1)
            rows = soft_tokens[self._upload(np.maximum(soft, 0))].contiguous().realize()  # [B, T, H]
            is_soft = self._upload((soft >= 0).astype(np.int32))
        if blocked:
            marks = self._upload(pad(np.full(chunk.ids.shape, -1) if chunk.blocks is None else chunk.blocks, -1))
        ids = pad(chunk.ids, 0)
        inputs = ChunkInputs(self._upload(ids), self._host_rows(ids), rows, is_soft, marks)
        start = first_position(storage, at)
        valid = UOp.variable("valid", 1, length).bind(count)
        return graph(tensors(inputs), start, valid)

    def _host_rows(self, ids: np.ndarray) -> Tensor | None:
        """Rows of the per-layer embedding table for ``ids [B, T]``, where the table is not on the device."""
        return None if self.model.ple_host is None else self.model.ple_host.rows(ids)

    def _chunk_graph(self, storage: Storage, length: int, media: bool, blocked: bool, every: bool) -> CapturedGraph:
        key = ("chunk", length, media, blocked, every)
        if key not in storage.graphs:
            function = self._chunk_function(storage, length, every)
            storage.graphs[key] = CapturedGraph(function, self._graph_store(storage, length), key)
        return storage.graphs[key]  # type: ignore[return-value]

    def _chunk_function(self, storage: Storage, length: int, every: bool) -> Callable[..., Tensor]:
        model, text, ops = self.model, self.model.text, self.model.operations
        table = text.rotation_table(storage.capacity + length)

        def run(named: dict[str, Tensor], start: UOp, valid: UOp) -> Tensor:
            given = ChunkInputs(**named)
            h = text.embed(given.ids)
            if given.soft_rows is not None and given.is_soft is not None:
                h = put_soft(h, given.soft_rows, given.is_soft != 0)
            span = ChunkSpan(storage.layers, start, valid, length, model.device, given.blocks)
            rotation = text.rotation(table, start, length)
            last = None if every else valid - 1
            inputs = text.inputs(given.ids, h, ops, given.ple_rows)
            hidden = text.run(inputs, span, rotation, ops, last=last).contiguous()
            return hidden.realize(*span.writes)

        return run

    # ------------------------------------------------------------------------------------------- decode

    def hidden_step(self, storage: Storage, at: int, ids: np.ndarray) -> Tensor:
        """Append one position ``ids [B, 1]`` and return its final hidden state ``[B, 1, H]``."""
        if "hidden" not in storage.graphs:
            store = self._graph_store(storage, self.model.chunk)
            storage.graphs["hidden"] = CapturedGraph(self._token_function(storage, head=False), store, "hidden")
        start = first_position(storage, at)
        inputs = TokenInputs(self._upload(ids), self._host_rows(ids))
        return storage.graphs["hidden"](tensors(inputs), start)  # type: ignore[operator]

    def decode_step(self, storage: Storage, state: SamplingState | None) -> DecodeStep:
        """The step that turns a token into the next one, greedy or sampled, against these buffers."""
        key = ("decode", state is not None)
        if key not in storage.graphs:
            own = self.model.operations.decode_step
            step = own(self.view, storage, state is not None) if own is not None else None
            storage.graphs["own", *key] = step is not None
            storage.graphs[key] = step or self.portable_step(storage, state is not None)
        return storage.graphs[key]  # type: ignore[return-value]

    def device_steps(self, storage: Storage) -> tuple[str, ...]:
        """Which steps the device runs by itself against these buffers: ``decode`` (greedy), ``prefill``."""
        self.decode_step(storage, None)
        own = {"decode": storage.graphs["own", "decode", False], "prefill": self._own_prefill(storage) is not None}
        return tuple(name for name, is_own in own.items() if is_own)

    def step_kernels(self, storage: Storage) -> int:
        """Kernels that a greedy step launches: 1 where it is the device's own, else those of the captured graph, 0
        before that has run."""
        graph = storage.graphs.get(("decode graph", False))
        return graph.kernels if isinstance(graph, CapturedGraph) else int("decode" in self.device_steps(storage))

    def layer_kernels(self, storage: Storage) -> int:
        """Those of a greedy step's kernels that ``Operations.layers`` brought; 0 where it was not used, or served
        nothing."""
        graph = storage.graphs.get(("decode graph", False))
        return sum(name.startswith(LAYER_KERNELS) for name in graph.names) if isinstance(graph, CapturedGraph) else 0

    def portable_step(self, storage: Storage, sampled: bool) -> DecodeStep:
        """The portable form of ``decode_step``."""
        key = ("decode graph", sampled)
        function = self._token_function(storage, head=True)
        storage.graphs[key] = graph = CapturedGraph(function, self._graph_store(storage, self.model.chunk), key)

        def step(token: Tensor, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
            start = first_position(storage, position)
            rows = None if self.model.ple_host is None else self.model.ple_host.rows(token.numpy())
            sampling = (None, None, None) if state is None else (state.params, state.seed, state.seen)
            return graph(tensors(TokenInputs(token, rows, *sampling)), start)

        return step

    def _token_function(self, storage: Storage, head: bool) -> Callable[..., Any]:
        model, text, ops = self.model, self.model.text, self.model.operations
        table = text.rotation_table(storage.capacity + model.chunk)

        def run(named: dict[str, Tensor], start: UOp) -> Tensor | tuple[Tensor, ...]:
            given = TokenInputs(**named)
            inputs = text.inputs(given.token, text.embed(given.token), ops, given.ple_rows)
            hidden = ops.layers(text, inputs, storage.layers, table, start) if ops.layers is not None else None
            if hidden is None:
                span = TokenSpan(storage.layers, start, model.device)
                hidden = text.run(inputs, span, text.rotation(table, start, 1), ops)
            if not head:
                return hidden.contiguous().realize()
            state = None
            if given.params is not None and given.seed is not None and given.seen is not None:
                state = SamplingState(given.params, given.seed, given.seen)
            return self._choose(text.logits(hidden[:, 0], ops), state, start + 1)

        return run

    def _graph_store(self, storage: Storage | None, length: int = 0) -> GraphCache | None:
        """Where graphs against these buffers outlive the process, None where they may not; ``length`` is what their
        rotation table holds beyond the cache's capacity."""
        if not can_be_stored(self.model):
            return None
        table = self.model.text.rotation_table(storage.capacity + length) if storage is not None else None
        pairs = (*table.sliding, *table.full) if table is not None else ()
        return GraphCache(self.model, storage, {str(i): tensor for i, tensor in enumerate(pairs)})

    # ------------------------------------------------------------------------------------------- logits

    def logits(self, hidden: np.ndarray, dtype: DType) -> Tensor:
        """Logits fp32 ``[B, T, V]`` of final hidden states fp32 ``[B, T, H]`` that had this dtype.

        A few rows at a time, in numbers of rows that are powers of two: graphs are captured for few shapes, whatever
        the length, and hold little memory.
        """
        rows = hidden.reshape(-1, hidden.shape[-1])  # [B, T, H] -> [B * T, H]
        made = Tensor.empty(len(rows), self.vocab, dtype=dtypes.float32, device=self.model.device)
        for first in range(0, len(rows), HEAD_ROWS):
            part = rows[first : first + HEAD_ROWS]
            size = 1 << (len(part) - 1).bit_length()
            padded = np.pad(part, ((0, size - len(part)), (0, 0)))
            given = upload(padded, self.model.device, dtype)
            made = put_rows(made, first, self._head_graph(size, dtype)(given), len(part))
        return made.reshape(*hidden.shape[:2], self.vocab)

    def _head_graph(self, size: int, dtype: DType) -> CapturedGraph:
        key = ("head", size, dtype)
        if key not in self.model.graphs:
            text, ops = self.model.text, self.model.operations

            def logits(rows: Tensor) -> Tensor:
                return text.logits(rows, ops).contiguous().realize()

            self.model.graphs[key] = CapturedGraph(logits, self._graph_store(None), key)
        return self.model.graphs[key]  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------- choosing

    def first_token(
        self, hidden: Tensor | PrefillResult, position: int, state: SamplingState | None
    ) -> tuple[Tensor, Tensor]:
        """Choose the token at ``position`` from what a prefill ended with."""
        if isinstance(hidden, PrefillResult):
            return hidden.choose(self.view, position, state)
        key = ("first", int(hidden.shape[0]), state is not None)
        if key not in self.model.graphs:
            text, ops = self.model.text, self.model.operations
            function = self._choosing(lambda hidden: text.logits(hidden[:, 0], ops), state is not None)
            self.model.graphs[key] = CapturedGraph(function, self._graph_store(None), key)
        extra = [state.params, state.seed, state.seen] if state is not None else []
        place = UOp.variable("place", 0, POSITION_LIMIT).bind(position)
        return self.model.graphs[key](hidden, *extra, place)  # type: ignore[operator]

    def _choosing(self, logits_of: Callable[[Tensor], Tensor], sampled: bool) -> Callable:
        """A function of what ``logits_of`` makes logits from, the sampling state's tensors, and the position."""

        def run(source: Tensor, *rest: Any) -> tuple[Tensor, ...]:
            *extra, place = rest
            return self._choose(logits_of(source), SamplingState(*extra) if sampled else None, place)

        return run

    def choose(self, logits: Tensor, position: int, state: SamplingState) -> tuple[Tensor, Tensor]:
        """Sample from logits fp32 ``[1, V]``, for devices whose own pass ends with them."""
        if "choose" not in self.model.graphs:
            self.model.graphs["choose"] = CapturedGraph(self._choosing(lambda logits: logits, sampled=True))
        place = UOp.variable("place", 0, POSITION_LIMIT).bind(position)
        return self.model.graphs["choose"](logits, state.params, state.seed, state.seen, place)  # type: ignore[operator]

    def _choose(self, logits: Tensor, state: SamplingState | None, position: Any) -> tuple[Tensor, ...]:
        model = self.model
        if model.suppressed is not None:
            logits = model.suppressed.where(-1e30, logits)
        token, logprob = model.operations.sample(logits.contiguous(), state, position)
        token, logprob = token.contiguous(), logprob.contiguous()
        if state is None:
            token.realize(logprob)
            return token, logprob
        vocabulary = Tensor.arange(self.vocab, dtype=dtypes.int32).reshape(1, -1)
        marked = state.seen.uop.after(state.seen.uop.store((state.seen | (vocabulary == token)).uop))
        token.realize(logprob, Tensor(marked))
        return token, logprob

    def _upload(self, array: np.ndarray) -> Tensor:
        return upload(np.ascontiguousarray(array, np.int32), self.model.device)
