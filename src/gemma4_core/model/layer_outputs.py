"""What a forward pass computes on its way: hidden states between layers, and attention weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.differentiable import device_inputs, hidden
from gemma4_core.model.ids import padded_length
from gemma4_core.model.media import PlacedPrompt, put_soft
from gemma4_core.model.model import GemmaModel
from gemma4_core.model.spans import ChunkSpan
from gemma4_core.ops import Operations
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.differentiable import differentiable_operations
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.portable import attention_weights


@dataclass(frozen=True)
class LayerOutputs:
    """The inside of a forward pass over T positions, after S - T positions that a cache holds."""

    hidden: Tensor | None = None
    """``[layers + 1, B, T, H]``: the scaled embeddings, then every layer's output, the last one after the final norm;
    None where it was not wanted."""
    attention: tuple[Tensor, ...] | None = None
    """For each layer fp32 ``[B, heads, T, S]``: what each position gives to each other, in the order of positions."""


class Recorder:
    """Notes the outputs of layers and attention weights while the decoder runs."""

    def __init__(self, want_hidden: bool, want_attention: bool) -> None:
        self.want_hidden, self.want_attention = want_hidden, want_attention
        self.streams: list[Tensor] = []
        self.weights: list[Tensor] = []

    def operations(self, table: Operations) -> Operations:
        """The same operations, whose attention notes its weights."""
        if not self.want_attention:
            return table

        def attention(q: Tensor, kv: KeyValues) -> Tensor:
            self.weights.append(by_position(attention_weights(q, kv), kv))
            return table.attention(q, kv)

        return replace(table, attention=attention)

    def around(self, wrap: Callable[..., Any]) -> Callable[..., Any]:
        """A wrapper of layers that notes what goes into the first and comes out of each."""

        def noting(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
            step = wrap(layer)

            def run(h: Tensor, *others: Any) -> Tensor:
                if not self.streams:
                    self.streams.append(h)
                self.streams.append(step(h, *others))
                return self.streams[-1]

            return run

        return noting

    def outputs(self, final: Tensor, length: int) -> LayerOutputs:
        """What was noted, cut to the first ``length`` of the positions that ran; ``final`` is after the final norm."""
        whole = attention = None
        if self.want_hidden:
            whole = Tensor.stack(*self.streams[:-1], final)[:, :, :length]
        if self.want_attention:
            more = int(final.shape[1]) - length
            attention = tuple(w[:, :, :length, : int(w.shape[3]) - more] for w in self.weights)
        return LayerOutputs(whole, attention)


def by_position(weights: Tensor, kv: KeyValues) -> Tensor:
    """Weights ``[B, kv heads, group, T, S]`` as ``[B, heads, T, positions]``: keys of a ring in the order of positions,
    those that it no longer holds with weight 0."""
    batch, groups, each, length, keys = (int(size) for size in weights.shape)
    flat = weights.reshape(batch, groups * each, length, keys)  # [B, kv heads, group, T, S] -> [B, heads, T, S]
    slots, start = keys - length, int(kv.start)
    if kv.window is None or not slots:
        return flat
    positions = np.arange(start + length)
    source = np.where(positions < start, positions % slots, slots + positions - start)
    here = upload(positions >= start - slots, str(flat.device))
    return here.where(flat[:, :, :, upload(source.astype(np.int32), str(flat.device))], 0.0)


def uncached_outputs(
    model: GemmaModel, ids: np.ndarray, media: Mapping[str, Any], want_hidden: bool, want_attention: bool
) -> LayerOutputs:
    """The inside of a run of ``ids [B, T]`` without a cache. Nothing is computed before it is looked at, and gradients
    flow from it to the weights; rows are padded to a few lengths, each compiled once."""
    length = ids.shape[1]
    more = min(padded_length(length, model.max_context), model.max_context) - length
    padded = np.pad(ids, ((0, 0), (0, more)), constant_values=model.config.pad_token_id)
    recorder = Recorder(want_hidden, want_attention)
    model.gradients_taken = True
    final = hidden(model, device_inputs(model, padded, dict(media)), recorder=recorder)
    return recorder.outputs(final, length)


def cached_outputs(
    model: GemmaModel, cache: GemmaCache, placed: PlacedPrompt, want_hidden: bool, want_attention: bool
) -> tuple[Tensor, LayerOutputs]:
    """Append a prompt to a cache in one go, on the portable operations: its final hidden states ``[B, T, H]``, and the
    inside of the run."""
    text, device = model.text, model.device
    batch, length = placed.ids.shape
    storage = cache.reserve(model, batch, cache.length + length)
    recorder = Recorder(want_hidden, want_attention)
    operations = recorder.operations(differentiable_operations(model.operations))
    ids = upload(placed.ids, device)
    h = text.embed(ids)
    if placed.soft is not None and placed.soft_tokens is not None:
        soft = upload(placed.soft, device)
        h = put_soft(h, placed.soft_tokens[soft.maximum(0)], soft >= 0)
    blocks = None
    if model.bidirectional:
        blocks = upload(np.full(placed.ids.shape, -1, np.int32) if placed.blocks is None else placed.blocks, device)
    rows = None if model.ple_host is None else model.ple_host.rows(placed.ids)
    span = ChunkSpan(storage.layers, 0, cache.length, length, length, device, blocks)
    table = text.rotation_table(storage.capacity + model.chunk)
    inputs, rotation = text.inputs(ids, h, operations, rows), table.rows(cache.length, length)
    final = text.run(inputs, span, rotation, operations, wrap=recorder.around(lambda layer: layer)).contiguous()
    found = recorder.outputs(final, length)
    wanted = [found.hidden] if found.hidden is not None else []
    final.realize(*wanted, *(found.attention or ()), *span.writes)
    cache.note(placed.signature)
    return final, found
