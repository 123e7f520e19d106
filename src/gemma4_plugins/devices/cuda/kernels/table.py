"""The table of addresses that the persistent step reads: one row for the model, one for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.contracts.steps import Slots
from gemma4_core.model.decoder import TextDecoder
from gemma4_core.model.layers import DecoderLayer, ExpertFeedForward, Rotation
from gemma4_core.weights import Weight
from gemma4_plugins.devices.cuda.kernels.plan import FIELDS, KIND, kinds, layer_info
from gemma4_plugins.devices.stored_weights import stored

Address = Callable[[Tensor], int]
"""Where a realized tensor lies in the device's memory."""


def storage_of(weight: Weight) -> str | None:
    """``bf16`` or ``int8`` (with fp32 row scales) where the kernels read this weight in place, else None."""
    parts = stored(weight.matrix)
    types = {suffix: tensor.dtype for suffix, tensor in parts.items()}
    if types == {"": dtypes.bfloat16}:
        return "bf16"
    return "int8" if types == {"": dtypes.int8, "_scale": dtypes.float32} else None


def tensor_of(weight: Weight | None) -> Tensor | None:
    """The storage tensor of a weight."""
    return None if weight is None else weight.matrix.parts()[""]


def scale_of(weight: Weight | None) -> Tensor | None:
    """The row scales of an int8 weight, None for others."""
    return None if weight is None else weight.matrix.parts().get("_scale")


def cache_addresses(text: TextDecoder, slots: Slots, slot: int, address: Address) -> list[int]:
    """Where each layer's keys and values of one slot lie, ``[2, kv heads, positions, head_dim]``. A shared layer reads
    its donor's."""
    found = []
    for layer in text.config.layers:
        held = slots.layers[layer.donor if layer.donor is not None else layer.index]
        assert held is not None
        found.append(address(held) + slot * (int(held.nbytes()) // slots.count))
    return found


def address_table(
    text: TextDecoder, slots: Slots, caches: Sequence[int], rotation: Rotation, suppressed: Tensor | None,
    address: Address,
) -> np.ndarray:  # fmt: skip
    """uint64 ``[1 + layers, 2, FIELDS]``: addresses, and those of row scales; ``caches`` are those of one slot. Vectors
    must be bf16: the kernel converts nothing."""

    def at(tensor: Tensor | Weight | None) -> tuple[int, int]:
        if isinstance(tensor, Weight):
            scale = scale_of(tensor)
            return at(tensor_of(tensor))[0], address(scale) if scale is not None else 0
        return (address(tensor), 0) if tensor is not None else (0, 0)

    table = np.zeros((1 + len(text.layers), 2, FIELDS), np.uint64)
    per_layer = (text.ple_table, text.ple_projection, text.ple_norm) if text.per_layer else (None, None, None)
    positions = {
        x.is_full: int(t.shape[3]) for x, t in zip(text.config.layers, slots.layers, strict=True) if t is not None
    }
    model = [at(text.embedding), at(text.norm), *map(at, per_layer), *map(at, (*rotation.sliding, *rotation.full))]
    model += [at(suppressed), (positions.get(False, 1), 0), (positions.get(True, 1), 0)]
    all_kinds = kinds(text.config)
    model += [(info | width << 32, 0) for info, width in all_kinds]
    table[0, :, : len(model)] = np.array(model, np.uint64).T
    for row, layer, cache in zip(table[1:], text.layers, caches, strict=True):
        kind = all_kinds.index((layer_info(layer.config), layer.config.intermediate_size))
        fields = layer_fields(layer, kind, cache, at)
        row[:, : len(fields)] = np.array(fields, np.uint64).T
    return table


def layer_fields(
    layer: DecoderLayer, kind: int, cache: int, at: Callable[[Tensor | Weight | None], tuple[int, int]]
) -> list[tuple[int, int]]:
    """One layer's row, in the order of the kernel's ``Field``, with its cache's address."""
    config, attention, ff, ple = layer.config, layer.attention, layer.feed_forward, layer.per_layer
    own = not config.is_shared
    mixture = ff if isinstance(ff, ExpertFeedForward) else None
    nothing = (0, 0)
    fields = [
        at(attention.q_proj), at(attention.k_proj) if own else nothing, at(attention.v_proj) if own else nothing,
        at(attention.o_proj), at(ff.gate), at(ff.up), at(ff.down), at(ple.gate if ple else None),
        at(ple.projection if ple else None), (cache, 0), at(layer.before), at(attention.q_norm),
        at(attention.k_norm) if own else nothing, at(layer.after), at(ff.before), at(ff.after),
        at(ple.after if ple else None), at(layer.scalar), (layer_info(config) | kind * KIND, 0),
    ]  # fmt: skip
    if mixture is not None:
        parts = (mixture.router, mixture.gate_up, mixture.experts_down, mixture.router_scale, mixture.expert_scale,
                 mixture.dense_after, mixture.experts_before, mixture.experts_after)  # fmt: skip
        fields += [at(part) for part in parts]
    return fields
