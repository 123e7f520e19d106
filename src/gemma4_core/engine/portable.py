"""The portable form of a step: captured graphs of named operations, for any device and any mixture of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tinygrad import Tensor, UOp

from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.engine.choosing import Chooser, Kind, padded
from gemma4_core.engine.graph_cache import stored_graphs
from gemma4_core.engine.inputs import GraphInputs
from gemma4_core.engine.rows import bucket
from gemma4_core.model.media import put_soft
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.slots import SlotStore
from gemma4_core.model.spans import ChunkSpan, RowsSpan, TokenSpan
from gemma4_core.ops.graphs import CapturedGraph
from gemma4_core.ops.steps import Hidden, Outcome

SHORTEST = 8
"""Positions of the shortest chunk that checks drafts: a few of them share its graph."""


@dataclass
class Captured:
    """A graph with the tensors that it takes."""

    graph: CapturedGraph
    put: GraphInputs


def numbers(slots: SlotStore, slot: int, start: int) -> tuple[UOp, UOp]:
    """A slot and where a call begins in it, as graphs take them. tinygrad plans memory for the largest value: a chunk's
    scores for as many positions as the buffers hold, not for the longest context that there could be."""
    first = UOp.variable("start", 0, slots.capacity).bind(start)
    return UOp.variable("slot", 0, max(slots.count - 1, 1)).bind(slot), first


class PortableSteps:
    """Runs rows of one model against any slots."""

    def __init__(self, model: GemmaModel, chooser: Chooser) -> None:
        self.model, self.chooser = model, chooser

    def run(self, slots: SlotStore, rows: Rows, sampling: SamplingRows | None) -> Outcome | Hidden:
        """Append rows; wanted are all of them, the last one of each slot, or none."""
        if len(rows.runs) > 1:
            return self.several(slots, rows, sampling)
        if rows.count == 1 and rows.media is None:
            return self.token(slots, rows, sampling)
        every = len(rows.wanted) > 1
        hidden = self.chunk(slots, rows, every, short=every and sampling is not None)
        flat = hidden.reshape(-1, hidden.shape[-1])  # [1, T, H] -> [T, H]
        if sampling is None or not len(rows.wanted):
            return Hidden(flat)
        return self.chooser.from_hidden(flat, rows, sampling)

    # ------------------------------------------------------------------------------------------- one slot

    def token(self, slots: SlotStore, rows: Rows, sampling: SamplingRows | None) -> Outcome | Hidden:
        """One position of one slot, its hidden state and its choice in one graph."""
        kind = Kind.of(sampling) if sampling is not None and len(rows.wanted) else None
        key = ("token", kind)
        captured = self._captured(slots, key, self.model.chunk, lambda: self._token_function(slots, kind))
        given = self._ids(captured.put, rows.ids, (1, 1))
        if kind is not None:
            given |= self.chooser.inputs(captured.put, rows, cast(SamplingRows, sampling), 1)
        out = captured.graph(given, *numbers(slots, int(rows.slot[0]), int(rows.position[0])))
        return Outcome(out[0], out[1], out[2], out[3]) if kind is not None else Hidden(out[0])

    def _token_function(self, slots: SlotStore, kind: Kind | None) -> Callable[..., tuple[Tensor, ...]]:
        model, text, ops = self.model, self.model.text, self.model.operations
        table = text.rotation_table(slots.capacity + model.chunk)
        alone = slots.count == 1

        def run(named: dict[str, Tensor], slot: UOp, start: UOp) -> tuple[Tensor, ...]:
            ids = named["ids"]
            inputs = text.inputs(ids, text.embed(ids), ops, named.get("ple_rows"))
            whole = ops.layers is not None and alone
            hidden = ops.layers(text, inputs, slots.layers, table, start) if ops.layers and whole else None
            if hidden is None:
                span = TokenSpan(slots.layers, 0 if alone else slot, start, model.device)
                hidden = text.run(inputs, span, table.rows(start, 1), ops)
            flat = hidden[:, 0].contiguous()  # [1, 1, H] -> [1, H]
            if kind is None:
                return (flat.realize(),)
            logits = text.logits(flat, ops).contiguous()
            return *self.chooser.choose(logits, named, kind), flat.realize(), logits.realize()

        return run

    def chunk(self, slots: SlotStore, rows: Rows, every: bool, short: bool = False) -> Tensor:
        """Positions of one slot: final hidden states ``[1, T, H]`` with ``every``, T padded, else ``[1, 1, H]``. With
        ``short``, as for drafts, T may be less than a whole chunk."""
        count, size = rows.count, min(self.model.chunk, self.model.operations.graph_chunk)
        length = max(bucket(count), SHORTEST) if short and count <= size // 2 else -(-count // size) * size
        media, blocked = rows.media, self.model.bidirectional
        key = ("chunk", length, media is not None, blocked, every)
        captured = self._captured(slots, key, length, lambda: self._chunk_function(slots, length, every))
        put = captured.put
        given = self._ids(put, padded(np.asarray(rows.ids), length), (1, length))
        if media is not None:
            soft = padded(media.soft, length, -1)
            rows_of = media.tokens[put.put("soft", np.maximum(soft, 0)[None])]
            given["soft_rows"] = rows_of.contiguous().realize()  # [1, T, H]
            given["is_soft"] = put.put("is_soft", (soft >= 0).astype(np.int32)[None])
        if blocked:
            marks = np.full(count, -1, np.int32) if media is None or media.blocks is None else media.blocks
            given["blocks"] = put.put("blocks", padded(marks, length, -1)[None])
        slot, start = numbers(slots, int(rows.slot[0]), int(rows.position[0]))
        # tinygrad sets a CUDA graph up with variables of 0, and launches of that size must not be empty
        found: Tensor = captured.graph(given, slot, start, UOp.variable("tail", 0, length - 1).bind(count - 1))
        return found

    def _chunk_function(self, slots: SlotStore, length: int, every: bool) -> Callable[..., Tensor]:
        model, text, ops = self.model, self.model.text, self.model.operations
        table = text.rotation_table(slots.capacity + length)
        alone = slots.count == 1

        def run(named: dict[str, Tensor], slot: UOp, start: UOp, tail: UOp) -> Tensor:
            ids, valid = named["ids"], tail + 1
            h = text.embed(ids)
            if "soft_rows" in named:
                h = put_soft(h, named["soft_rows"], named["is_soft"] != 0)
            mine = 0 if alone else slot
            span = ChunkSpan(slots.layers, mine, start, valid, length, model.device, named.get("blocks"))
            inputs = text.inputs(ids, h, ops, named.get("ple_rows"))
            last = None if every else tail
            hidden = text.run(inputs, span, table.rows(start, length), ops, last=last).contiguous()
            return hidden.realize(*span.writes)

        return run

    # ------------------------------------------------------------------------------------------- several slots

    def several(self, slots: SlotStore, rows: Rows, sampling: SamplingRows | None) -> Outcome | Hidden:
        """A few positions of each of several slots, in one graph per numbers of slots and positions."""
        runs = rows.runs
        batch, length = bucket(len(runs)), bucket(max(run.stop - run.start for run in runs))
        size = bucket(len(rows.wanted)) if len(rows.wanted) else 0
        kind = Kind.of(sampling) if sampling is not None and size else None
        key = ("rows", batch, length, size, kind)
        captured = self._captured(slots, key, self.model.chunk, lambda: self._rows_function(slots, length, kind))
        put, ids = captured.put, np.zeros((batch, length), np.int32)
        slot, start, valid = (np.zeros(batch, np.int32) for _ in range(3))
        places = np.zeros(rows.count, np.int32)
        flat_ids = np.asarray(rows.ids)
        for i, run in enumerate(runs):
            count = run.stop - run.start
            ids[i, :count], slot[i] = flat_ids[run], rows.slot[run.start]
            start[i], valid[i] = rows.position[run.start], count
            places[run] = i * length + np.arange(count)
        # not 0 for the same reason as in a chunk
        last = UOp.variable("last", 0, slots.capacity - 1).bind(int(rows.position.max()))
        given = self._ids(put, ids, (batch, length)) | {
            "slot": put.put("slot", slot), "start": put.put("start", start), "valid": put.put("valid", valid),
            "wanted": put.put("wanted", padded(places[rows.wanted], max(size, 1))),
        }
        if kind is not None:
            given |= self.chooser.inputs(put, rows, cast(SamplingRows, sampling), size)
        out = captured.graph(given, last)
        if kind is None:
            return Hidden(out[0])
        return Outcome(out[0], out[1], out[2], out[3], len(rows.wanted))

    def _rows_function(self, slots: SlotStore, length: int, kind: Kind | None) -> Callable[..., tuple[Tensor, ...]]:
        model, text, ops = self.model, self.model.text, self.model.operations
        table = text.rotation_table(slots.capacity + model.chunk)

        def run(named: dict[str, Tensor], last: UOp) -> tuple[Tensor, ...]:
            ids, end = named["ids"], last + 1
            inputs = text.inputs(ids, text.embed(ids), ops, named.get("ple_rows"))
            span = RowsSpan(slots.layers, named["slot"], named["start"], named["valid"], length, end, model.device)
            hidden = text.run(inputs, span, table.at(span.rows), ops)
            # [B, T, H] -> [B * T, H] -> [M, H]
            flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()[named["wanted"]].contiguous()
            if kind is None:
                return (flat.realize(),)
            logits = text.logits(flat, ops).contiguous()
            return *self.chooser.choose(logits, named, kind), flat.realize(), logits.realize()

        return run

    # ------------------------------------------------------------------------------------------- graphs

    def _captured(
        self, slots: SlotStore, key: tuple[object, ...], length: int, function: Callable[[], Callable[..., Any]]
    ) -> Captured:
        """The graph of this key against these slots, captured by its first call."""
        found = slots.graphs.get(key)
        if found is None:
            graph = CapturedGraph(function(), stored_graphs(self.model, slots, length), key)
            found = slots.graphs[key] = Captured(graph, GraphInputs(self.model.device))
        return cast(Captured, found)

    def _ids(self, put: GraphInputs, ids: np.ndarray | Tensor, shape: tuple[int, int]) -> dict[str, Tensor]:
        """Ids ``[B, T]``, and rows of the per-layer embedding table where it is not on the device."""
        array = ids.numpy() if isinstance(ids, Tensor) else ids
        array = np.ascontiguousarray(array, np.int32).reshape(shape)
        host = self.model.ple_host
        rows = {} if host is None else {"ple_rows": host.rows(array)}
        return {"ids": put.put("ids", array)} | rows
