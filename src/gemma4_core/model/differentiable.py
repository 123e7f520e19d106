"""The differentiable forward pass: without a cache, on the portable operations, optionally with recomputation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tinygrad import Tensor, UOp, function

from gemma4_core.errors import InputError
from gemma4_core.model.decoder import Inputs
from gemma4_core.model.layers import Rotation, matrix
from gemma4_core.model.media import place, put_soft
from gemma4_core.model.spans import FreshSpan
from gemma4_core.ops import Operations
from gemma4_core.ops.differentiable import differentiable_operations
from gemma4_core.ops.embedding_rows import trainable_rows
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.products import materialized

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


@dataclass(frozen=True)
class DeviceInputs:
    """A placed prompt on the device: what the differentiable forward pass starts from."""

    ids: Tensor
    """int32 ``[B, T]``, the pad id where a soft token stands."""
    soft_tokens: Tensor | None = None
    """``[N, H]``, with gradients to the towers."""
    soft: Tensor | None = None
    """int32 ``[B, T]``: row of ``soft_tokens``, -1 for text."""
    positions: Tensor | None = None
    """int32 ``[N]``: flat position in ``[B, T]`` that each row went to, -1 for none."""
    blocks: Tensor | None = None
    """int32 ``[B, T]``: bidirectional blocks."""
    ple_rows: Tensor | None = None
    """``[B, T, layers * P]`` where the per-layer table is not on the device."""
    segments: Tensor | None = None
    """int32 ``[B, T]``: positions see those of their own number."""


def device_inputs(
    model: GemmaModel, ids: np.ndarray, media: dict[str, Any], segments: np.ndarray | None = None
) -> DeviceInputs:
    """Encode media, find their places, and bring everything to the device. Raises InputError."""
    check_length(model, ids)
    placed = place(model, ids, media)
    put = partial(upload, device=model.device)
    soft = positions = None
    if placed.soft is not None and placed.soft_tokens is not None:
        soft = put(placed.soft)
        positions = put(placed.soft_positions)
    blocks = None if placed.blocks is None else put(placed.blocks)
    rows = None if model.ple_host is None else model.ple_host.rows(placed.ids)
    parts = None if segments is None else put(segments)
    return DeviceInputs(put(placed.ids), placed.soft_tokens, soft, positions, blocks, rows, parts)


def check_length(model: GemmaModel, ids: np.ndarray) -> None:
    """Raise InputError for rows ``[B, T]`` longer than the context."""
    if ids.shape[1] > model.max_context:
        over = ids.shape[1] - model.max_context
        raise InputError(f"a row of {ids.shape[1]} tokens exceeds the context of {model.max_context} by {over}")


class Observer(Protocol):
    """Something that looks at layers and attention while the decoder runs."""

    def operations(self, table: Operations) -> Operations:
        """The operations to run with."""

    def around(self, wrap: Callable[..., Any]) -> Callable[..., Any]:
        """A wrapper of layers that is put around another one."""


def hidden(
    model: GemmaModel, inputs: DeviceInputs, checkpointing: bool = False, recorder: Observer | None = None
) -> Tensor:
    """Final hidden states ``[B, T, H]``. ``checkpointing`` recomputes each layer in the backward pass."""
    length = int(inputs.ids.shape[1])
    operations = differentiable_operations(model.operations, checkpointing)
    begin = start(model, inputs, operations)
    rotation = rotation_table(model, length).rows(0, length)
    span = FreshSpan(length, model.device, inputs.blocks, inputs.segments)
    wrap = recomputed if checkpointing else in_memory
    if recorder is not None:
        operations, wrap = recorder.operations(operations), recorder.around(wrap)
    return model.text.run(begin, span, rotation, operations, wrap=wrap)


def start(model: GemmaModel, inputs: DeviceInputs, operations: Operations) -> Inputs:
    """What the layers start from: the stream with soft tokens in their places, and per-layer inputs."""
    padding = (inputs.ids == model.config.pad_token_id).unsqueeze(-1)
    h = without_pad_gradient(padding, model.text.scaled(trainable_rows(matrix(model.text.embedding), inputs.ids)))
    if inputs.soft is not None and inputs.soft_tokens is not None and inputs.positions is not None:
        h = put_soft(h, spread(inputs.soft_tokens, inputs.soft, inputs.positions), inputs.soft >= 0)
    rows = inputs.ple_rows
    if rows is None and model.text.ple_table is not None:
        rows = without_pad_gradient(padding, trainable_rows(matrix(model.text.ple_table), inputs.ids))
    return model.text.inputs(inputs.ids, h, operations, rows)


def rotation_table(model: GemmaModel, length: int) -> Rotation:
    """Angles for rows of this length, kept by the model; few different sizes."""
    return model.text.rotation_table(max(512, 1 << (length - 1).bit_length()))


def spread(soft_tokens: Tensor, soft: Tensor, positions: Tensor) -> Tensor:
    """Rows of ``soft_tokens [N, H]`` where ``soft [B, T]`` wants them: ``[B, T, H]``.

    A row goes to one position at most, so its gradient is read from there; tinygrad's own would look through all
    positions for each row.
    """
    source = soft_tokens.contiguous()

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        flat = Tensor(seed).reshape(-1, source.shape[-1])  # [B, T, H] -> [B * T, H]
        back = (positions >= 0).unsqueeze(1).where(flat[positions.maximum(0)], 0.0).cast(source.dtype)
        return tuple(back.uop if arg is source.uop else None for arg in call.src[1:])

    @function(grad_fxn=gradient)
    def rows(source: Tensor, soft: Tensor) -> Tensor:
        return source[soft.maximum(0)]

    found: Tensor = rows(source, soft)
    return found


def without_pad_gradient(padding: Tensor, rows: Tensor) -> Tensor:
    """Rows of an embedding table, without a gradient to the pad id's row, which torch never trains either
    (``padding_idx`` of transformers 5.23.0); soft tokens carry that id in the per-layer table."""
    return padding.where(rows.detach(), rows)


def in_memory(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer whose output is in memory: else every reader repeats the additions before it."""
    return lambda *inputs: materialized(layer(*inputs))


def recomputed(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer that keeps only its inputs for the backward pass.

    The layer itself is an argument: tinygrad gives no gradients to weights that a function only closes over.
    """

    @function(precompile=True, precompile_backward=True, allow_implicit=True)
    def run(layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return layer(*inputs)

    return lambda *inputs: run(layer, *inputs)
