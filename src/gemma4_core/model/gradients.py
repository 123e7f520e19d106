"""Gradients of the logits that ``forward_ids`` returns, for losses of one's own.

The logits are computed at once, by whatever the device runs prompts with. They carry a gradient that is worked out
when it is asked for: the differentiable forward pass is traced then, so that calls without gradients cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, UOp, function

from gemma4_core.model.differentiable import device_inputs, hidden
from gemma4_core.model.ids import padded_length
from gemma4_core.model.layers import matrix
from gemma4_core.model.media import used_towers
from gemma4_core.ops.differentiable import differentiable_operations

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


def differentiable(model: GemmaModel, ids: np.ndarray, media: Mapping[str, Any], logits: Tensor) -> Tensor:
    """``logits [B, T, V]`` of ``ids [B, T]`` and media, with gradients to every weight of floating-point numbers."""

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        model.gradients_taken = True
        padded = traced(model, ids, media)
        # computed now, so that what follows is the same graph for every loss and every length of a bucket
        wide = Tensor(seed).pad((None, (0, int(padded.shape[1]) - ids.shape[1]), None)).contiguous().realize()
        held = [tensor for tensor in weights if tensor.uop in call.src[1:]]
        found = {w.uop: g.uop for w, g in zip(held, padded.gradient(*held, gradient=wide), strict=True)}
        # a constant is tinygrad's answer for what the logits do not depend on
        return tuple(found[x] if x in found and found[x].device is not None else None for x in call.src[1:])

    @function(grad_fxn=gradient)
    def carried(logits: Tensor, *weights: Tensor) -> Tensor:
        return logits

    weights = trained_weights(model, media)
    found: Tensor = carried(logits, *weights)
    return found


def trained_weights(model: GemmaModel, media: Mapping[str, Any]) -> list[Tensor]:
    """What gradients may reach: the tensors of floating-point numbers of the text model and of the towers in use."""
    idle = [tower for name, tower in model.towers.items() if name not in needed(model, media)]
    others = {id(tensor) for tower in idle for tensor in tower.parameters().values()}
    own = dict(model.trained_part.tensors) if model.trained_part is not None else {}
    named = model.named_tensors() | own
    return [t for t in named.values() if t.is_floating_point() and id(t) not in others]


def needed(model: GemmaModel, media: Mapping[str, Any]) -> set[str]:
    """Names of the towers that media go through, those included whose weights others borrow."""
    used = used_towers(model, media)
    return {spec.name for spec in used} | {name for spec in used for name in spec.requires}


def traced(model: GemmaModel, ids: np.ndarray, media: Mapping[str, Any]) -> Tensor:
    """The differentiable logits ``[B, bucket, V]``: rows are padded to a few lengths, each compiled once. Nothing looks
    ahead, so padding behind a text changes nothing."""
    length = min(padded_length(ids.shape[1], model.max_context), model.max_context)
    padded = np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=model.config.pad_token_id)
    h = hidden(model, device_inputs(model, padded, dict(media)))
    text = model.text
    operations = differentiable_operations(model.operations)
    return operations.logits(h, matrix(text.embedding), text.config.final_logit_softcapping)
