"""The differentiable forward pass: without a cache, on the portable operations, optionally with recomputation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, function

from gemma4_core.errors import InputError
from gemma4_core.model.media import place
from gemma4_core.model.spans import FreshSpan
from gemma4_core.ops import portable

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel

PORTABLE = portable()
"""Operations that have gradients; a device's own may not."""


@dataclass(frozen=True)
class Fed:
    """What the forward pass starts from, on the device."""

    ids: Tensor
    """int32 ``[B, T]``, the pad id where a soft token stands."""
    soft_tokens: Tensor | None = None
    """``[N, H]``, with gradients to the towers."""
    soft: Tensor | None = None
    """int32 ``[B, T]``: row of ``soft_tokens``, -1 for text."""
    blocks: Tensor | None = None
    """int32 ``[B, T]``: bidirectional blocks."""
    ple_rows: Tensor | None = None
    """``[B, T, layers * P]`` where the per-layer table is not on the device."""


def feed(model: GemmaModel, ids: np.ndarray, media: dict[str, Any]) -> Fed:
    """Encode media, find their places, and bring everything to the device. Raises InputError."""
    if ids.shape[1] > model.max_context:
        over = ids.shape[1] - model.max_context
        raise InputError(f"a row of {ids.shape[1]} tokens exceeds the context of {model.max_context} by {over}")
    placed = place(model, ids, media)
    upload = lambda array: Tensor(np.ascontiguousarray(array), device=model.device).clone().realize()  # noqa: E731
    soft = None if placed.soft is None else upload(placed.soft)
    blocks = None if placed.blocks is None else upload(placed.blocks)
    rows = None if model.ple_host is None else model.ple_host.rows(placed.ids)
    return Fed(upload(placed.ids), placed.soft_tokens, soft, blocks, rows)


def hidden(model: GemmaModel, fed: Fed, checkpointing: bool = False) -> Tensor:
    """Final hidden states ``[B, T, H]``. ``checkpointing`` recomputes each layer in the backward pass."""
    length = int(fed.ids.shape[1])
    h = model.text.embed(fed.ids)
    if fed.soft is not None and fed.soft_tokens is not None:
        rows = fed.soft_tokens[fed.soft.maximum(0)]  # [B, T, H]
        h = (fed.soft >= 0).unsqueeze(-1).where(rows.cast(h.dtype), h)
    inputs = model.text.inputs(fed.ids, h, PORTABLE, fed.ple_rows)
    step = max(512, 1 << (length - 1).bit_length())
    rotation = model.text.rotation(model.text.rotation_table(step), 0, length)
    span = FreshSpan(length, model.device, fed.blocks)
    return model.text.run(inputs, span, rotation, PORTABLE, wrap=recomputed if checkpointing else None)


def recomputed(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer that keeps only its inputs for the backward pass.

    The layer itself is an argument: tinygrad gives no gradients to weights that a function only closes over.
    """

    @function(precompile=True, precompile_backward=True, allow_implicit=True)
    def run(layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
        return layer(*inputs)

    return lambda *inputs: run(layer, *inputs)
