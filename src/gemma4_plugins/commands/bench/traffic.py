"""Bytes that a decode step must read, which bound its speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma4_core.generation.loaded_model import LoadedModel
    from gemma4_core.weights import ExpertStack, Matrix

EXPERTS = ".experts."


def stored_bytes(matrix: Matrix | ExpertStack) -> int:
    """Bytes of a weight on the device, scales included."""
    return sum(int(part.nbytes()) for part in matrix.parts().values())


def weight_bytes(model: LoadedModel) -> int:
    """Bytes of weights that one token reads: all layers, the chosen experts, the head, one row of each table."""
    text = model.config.text_config
    total = sum(int(tensor.nbytes()) for tensor in model.tensors.values())
    for name, place in model.places.items():
        size = stored_bytes(place.matrix)
        if name.endswith("embed_tokens_per_layer.weight"):
            size //= place.matrix.shape[0]
        elif EXPERTS in name:
            size = size * text.top_k_experts // text.num_experts
        total += size
    return total


def cache_bytes(model: LoadedModel, positions: float) -> int:
    """Bytes of keys and values that one token at this position reads. Layers that share them count as well."""
    total = 0.0
    for layer in model.config.text_config.layers:
        seen = positions if layer.window is None else min(positions, layer.window)
        total += 2 * seen * layer.num_key_value_heads * layer.head_dim * model.dtype.itemsize
    return round(total)
