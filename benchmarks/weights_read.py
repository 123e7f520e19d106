"""Bytes of weights that one decode step has to read: what its time is compared with."""

from __future__ import annotations

from gemma4_core.model.model import GemmaModel


def bytes_per_token(model: GemmaModel) -> int:
    """All matrices of the layers and the tied head once, of experts the chosen ones, no embedding table beside them."""
    text, total = model.config.text_config, 0
    for name, place in model.places.items():
        size = sum(tensor.nbytes() for tensor in place.matrix.parts().values())
        if name.endswith("embed_tokens_per_layer.weight"):
            continue
        total += size * text.top_k_experts // text.num_experts if ".experts." in name else size
    return int(total)
