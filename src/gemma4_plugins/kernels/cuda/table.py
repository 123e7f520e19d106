"""The table of addresses that the persistent step reads: one row for the model, one for each layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.model.cache import Storage
from gemma4_core.model.decoder import TextDecoder
from gemma4_core.model.layers import DecoderLayer, ExpertFeedForward, Rotation
from gemma4_core.weights import DenseMatrix, DenseStack, Weight
from gemma4_plugins.kernels.cuda.plan import FIELDS

Address = Callable[[Tensor], int]
"""Where a realized tensor lies in the device's memory."""

IS_FULL, IS_OWN, KEY_IS_VALUE = 1, 2, 4


def plain(weight: Weight | None) -> bool:
    """Whether the kernel reads this weight in place: an ordinary bf16 tensor."""
    held = weight.matrix if weight is not None else None
    return isinstance(held, DenseMatrix | DenseStack) and held.tensor.dtype == dtypes.bfloat16


def tensor_of(weight: Weight | None) -> Tensor | None:
    """The storage tensor of a plain weight."""
    held = weight.matrix if weight is not None else None
    return held.tensor if isinstance(held, DenseMatrix | DenseStack) else None


def address_table(
    text: TextDecoder, storage: Storage, rotation: Rotation, suppressed: Tensor | None, address: Address
) -> np.ndarray:
    """uint64 ``[1 + layers, FIELDS]``. Vectors must be bf16: the kernel converts nothing."""

    def at(tensor: Tensor | Weight | None) -> int:
        tensor = tensor_of(tensor) if isinstance(tensor, Weight) else tensor
        return address(tensor) if tensor is not None else 0

    table = np.zeros((1 + len(text.layers), FIELDS), np.uint64)
    per_layer = (text.ple_table, text.ple_projection, text.ple_norm) if text.per_layer else (None, None, None)
    pairs = (*rotation.sliding, *rotation.full)
    slots = {
        x.is_full: held.shape[3] for x, held in zip(text.config.layers, storage.layers, strict=True) if held is not None
    }
    model = [at(text.embedding), at(text.norm), *map(at, per_layer), *map(at, pairs), at(suppressed)]
    model += [slots.get(False, 1), slots.get(True, 1)]
    table[0, : len(model)] = model
    for row, layer in zip(table[1:], text.layers, strict=True):
        fields = layer_fields(layer, storage, at)
        row[: len(fields)] = fields
    return table


def layer_fields(layer: DecoderLayer, storage: Storage, at: Callable[[Tensor | Weight | None], int]) -> list[int]:
    """One layer's row, in the order of the kernel's ``Field``. A shared layer reads its donor's cache."""
    config, attention, ff, ple = layer.config, layer.attention, layer.feed_forward, layer.per_layer
    own, one = not config.is_shared, config.k_eq_v
    held = storage.layers[config.donor if config.donor is not None else config.index]
    info = IS_FULL * config.is_full | IS_OWN * own | KEY_IS_VALUE * one
    mixture = ff if isinstance(ff, ExpertFeedForward) else None
    return [
        at(attention.q_proj), at(attention.k_proj) if own else 0, at(attention.v_proj) if own else 0,
        at(attention.o_proj), at(ff.gate), at(ff.up), at(ff.down),
        at(ple.gate) if ple else 0, at(ple.projection) if ple else 0, at(held),
        at(layer.before), at(attention.q_norm), at(attention.k_norm) if own else 0,
        at(layer.after), at(ff.before), at(ff.after), at(ple.after) if ple else 0, at(layer.scalar), info,
        *((at(mixture.router), at(mixture.gate_up), at(mixture.experts_down), at(mixture.router_scale),
           at(mixture.expert_scale), at(mixture.dense_after), at(mixture.experts_before), at(mixture.experts_after))
          if mixture else (0,) * 8),
        config.intermediate_size,
    ]  # fmt: skip
