"""Logits of token ids and media, with a cache or with gradients: what ``forward_ids`` does."""

from __future__ import annotations

from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.engine.engine import Engine
from gemma4_core.model.cache import GemmaCache
from gemma4_core.model.gradients import differentiable
from gemma4_core.model.ids import check_ids
from gemma4_core.model.layer_outputs import LayerOutputs, cached_outputs, uncached_outputs
from gemma4_core.model.media import place

Logits = tuple[Tensor, GemmaCache | None]
"""What ``forward_ids`` returns: logits fp32 ``[B, T, V]``, and the cache."""


def forward_ids(engine: Engine, ids: Any, cache: GemmaCache | None, media: dict[str, Any]) -> Logits:
    """See ``LoadedModel.forward_ids``."""
    model = engine.model
    array = check_ids(ids, model.config.text_config.vocab_size)
    if cache is not None:
        model.invalidate_if_trained()
        hidden, dtype = engine.hidden_states(cache, place(model, array, media, capture=True))
        return engine.logits(hidden, dtype), cache
    model.invalidate_if_changed()
    placed = place(model, array, media, capture=True)
    room = model.make_cache()
    rows = []
    for row in range(len(array)):
        room.reset()
        rows.append(engine.hidden_states(room, placed.row(row)))
    logits = engine.logits(np.concatenate([values for values, _ in rows]), rows[0][1])
    return differentiable(model, array, media, logits), None


def forward_inside(
    engine: Engine, ids: Any, cache: GemmaCache | None, media: dict[str, Any], want_hidden: bool, want_attention: bool
) -> tuple[Tensor, GemmaCache | None, LayerOutputs]:
    """As ``forward_ids``, with what the layers made on the way."""
    model = engine.model
    if cache is None:
        logits, _ = forward_ids(engine, ids, None, media)
        array = check_ids(ids, model.config.text_config.vocab_size)
        return logits, None, uncached_outputs(model, array, media, want_hidden, want_attention)
    array = check_ids(ids, model.config.text_config.vocab_size)
    model.invalidate_if_trained()
    placed = place(model, array, media, capture=True)
    final, outputs = cached_outputs(model, cache, placed, want_hidden, want_attention)
    return engine.logits(final.numpy().astype(np.float32, copy=False), final.dtype), cache, outputs
