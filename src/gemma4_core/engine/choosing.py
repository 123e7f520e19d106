"""Choosing tokens in captured graphs: from logits, or from hidden states through the head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.contracts.rows import Rows, SamplingRows
from gemma4_core.engine.graph_cache import stored_graphs
from gemma4_core.engine.inputs import GraphInputs
from gemma4_core.engine.rows import GREEDY, bucket
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops.graphs import CapturedGraph, upload
from gemma4_core.ops.sampling import SamplingTensors
from gemma4_core.ops.slot_writes import count_tokens
from gemma4_core.ops.steps import Outcome
from gemma4_core.processing.tower_graphs import put_rows

HEAD_ROWS = 128
"""Positions whose logits one graph makes."""


@dataclass(frozen=True)
class Kind:
    """What a graph that chooses has to look at; graphs are captured for each."""

    plain: bool
    counts: bool = False
    bias: bool = False
    mask: bool = False
    drafted: int = 0
    cuts: bool = False
    slots: int = 0
    """S of counts and biases."""

    @classmethod
    def of(cls, sampling: SamplingRows) -> Kind:
        """What these rows need."""
        if sampling.plain:
            return cls(True)
        params = sampling.params
        cuts = bool((params[:, 1] > 0).any() or (params[:, 2] < 1).any() or (params[:, 3] > 0).any())
        drafted = 0 if sampling.drafted is None or sampling.counts is None else sampling.drafted.shape[1]
        by_slot = sampling.counts if sampling.counts is not None else sampling.bias
        return cls(False, sampling.counts is not None, sampling.bias is not None, sampling.mask is not None, drafted,
                   cuts, int(by_slot.shape[0]) if by_slot is not None else 0)


def padded(array: np.ndarray, size: int, fill: Any = 0) -> np.ndarray:
    """An array with rows of ``fill`` behind it, so many in all."""
    if len(array) == size:
        return array
    rest = np.empty((size - len(array), *array.shape[1:]), array.dtype)
    rest[...] = fill
    return np.concatenate([array, rest])


class Chooser:
    """The graphs of one model that end in chosen tokens."""

    def __init__(self, model: GemmaModel) -> None:
        self.model = model
        self.vocab = model.config.text_config.vocab_size

    # ------------------------------------------------------------------------------------------- inside a graph

    def inputs(self, put: GraphInputs, rows: Rows, sampling: SamplingRows, size: int) -> dict[str, Tensor]:
        """What ``choose`` takes besides logits: tensors by name, padded to ``size`` rows."""
        kind, wanted = Kind.of(sampling), rows.wanted
        if kind.plain:
            return {}
        arrays = {
            "params": padded(sampling.params, size, GREEDY),
            "seed": padded(sampling.seed, size),
            "place": padded(rows.position[wanted] + 1, size).astype(np.int32),
        }
        if kind.counts or kind.bias:
            arrays["choosing_slot"] = padded(rows.slot[wanted], size).astype(np.int32)
        if kind.counts and not kind.drafted:
            arrays["counted"] = padded(np.ones(len(wanted), np.int32), size)
        if kind.mask:
            assert sampling.mask is not None
            arrays["mask"] = padded(sampling.mask, size, 0xFFFFFFFF)
        if kind.drafted:
            assert sampling.drafted is not None
            arrays["drafted"] = padded(sampling.drafted, size, -1)
        given = {name: put.put(name, array) for name, array in arrays.items()}
        if kind.counts:
            assert sampling.counts is not None
            given["counts"] = sampling.counts
        if kind.bias:
            assert sampling.bias is not None
            given["bias"] = sampling.bias
        return given

    def choose(self, logits: Tensor, named: Mapping[str, Tensor], kind: Kind) -> tuple[Tensor, ...]:
        """Realized ids int32 ``[M]`` and log-probabilities fp32 ``[M]`` from logits fp32 ``[M, V]`` and ``inputs``."""
        if self.model.suppressed is not None:
            logits = self.model.suppressed.where(-1e30, logits)
        logits = logits.contiguous()
        size = int(logits.shape[0])
        if kind.plain:
            place = Tensor.zeros(size, dtype=dtypes.int32, device=logits.device)
            token, logprob = self.model.operations.sample(logits, None, place)
            return realized(token, logprob)
        slot = named.get("choosing_slot")
        counts, bias = named.get("counts"), named.get("bias")
        sampling = SamplingTensors(
            named["params"], named["seed"],
            counts[slot] if counts is not None and slot is not None else None,
            bias[slot] if bias is not None and slot is not None else None,
            named.get("mask"), named.get("drafted"), kind.cuts,
        )
        token, logprob = self.model.operations.sample(logits, sampling, named["place"])
        if counts is None or slot is None or "counted" not in named:
            return realized(token, logprob)
        token = token.contiguous()
        return realized(token, logprob, count_tokens(counts, slot, token, named["counted"]))

    # ------------------------------------------------------------------------------------------- graphs

    def from_logits(self, logits: Tensor, rows: Rows, sampling: SamplingRows) -> Outcome:
        """The choices from logits fp32 ``[M, V]``, for devices whose own pass ends with them."""
        return self._run("logits", lambda source: source, logits, rows, sampling)

    def from_hidden(self, hidden: Tensor, rows: Rows, sampling: SamplingRows) -> Outcome:
        """The choices from final hidden states, of which ``[M, H]`` are those of the wanted rows."""
        text, ops = self.model.text, self.model.operations
        return self._run("hidden", lambda source: text.logits(source, ops), hidden, rows, sampling)

    def _run(
        self, what: str, logits_of: Callable[[Tensor], Tensor], source: Tensor, rows: Rows, sampling: SamplingRows
    ) -> Outcome:
        size, kind = int(source.shape[0]), Kind.of(sampling)
        key = ("choose", what, size, source.dtype, kind)
        if key not in self.model.graphs:

            def run(source: Tensor, named: dict[str, Tensor]) -> tuple[Tensor, ...]:
                logits = logits_of(source).contiguous().realize()
                return *self.choose(logits, named, kind), logits

            graph = CapturedGraph(run, stored_graphs(self.model, None), key)
            self.model.graphs[key] = (graph, GraphInputs(self.model.device))
        graph, put = cast(tuple[CapturedGraph, GraphInputs], self.model.graphs[key])
        ids, logprobs, logits = graph(source, self.inputs(put, rows, sampling, size))
        return Outcome(ids, logprobs, logits=logits, count=len(rows.wanted))

    # ------------------------------------------------------------------------------------------- logits alone

    def logits(self, hidden: np.ndarray, dtype: DType) -> Tensor:
        """Logits fp32 ``[B, T, V]`` of final hidden states fp32 ``[B, T, H]`` that had this dtype.

        A few rows at a time, in numbers of rows that are powers of two: graphs are captured for few shapes, whatever
        the length, and hold little memory.
        """
        rows = hidden.reshape(-1, hidden.shape[-1])  # [B, T, H] -> [B * T, H]
        made = Tensor.empty(len(rows), self.vocab, dtype=dtypes.float32, device=self.model.device)
        for first in range(0, len(rows), HEAD_ROWS):
            part = rows[first : first + HEAD_ROWS]
            size = bucket(len(part))
            given = upload(padded(part, size), self.model.device, dtype)
            made = put_rows(made, first, self._head_graph(size, dtype)(given), len(part))
        return made.reshape(*hidden.shape[:2], self.vocab)

    def _head_graph(self, size: int, dtype: DType) -> CapturedGraph:
        key = ("head", size, dtype)
        if key not in self.model.graphs:
            text, ops = self.model.text, self.model.operations

            def logits(rows: Tensor) -> Tensor:
                return text.logits(rows, ops).contiguous().realize()

            self.model.graphs[key] = CapturedGraph(logits, stored_graphs(self.model, None), key)
        return self.model.graphs[key]  # type: ignore[return-value]


def realized(token: Tensor, logprob: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities, realized together with what no output depends on."""
    token, logprob = token.contiguous(), logprob.contiguous()
    token.realize(logprob, *others)
    return token, logprob
