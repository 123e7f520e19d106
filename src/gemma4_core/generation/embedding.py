"""Texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.generation.tokens import prepare

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


def embed(model: GemmaModel, texts: str | Sequence[str]) -> np.ndarray:
    """What ``GemmaModel.embed`` returns."""
    found = []
    for text in [texts] if isinstance(texts, str) else texts:
        if not isinstance(text, str):
            raise InputError(f"embed takes texts, not {type(text).__name__}")
        prepared = prepare(model, model.processor.prepare_inputs(text).input_ids, 0, None, {})
        hidden, _ = model.append(prepared.cache, prepared.placed, every=True)  # [1, T, H]
        mean = hidden[0].mean(0)
        found.append(mean / np.linalg.norm(mean))
    return np.stack(found) if found else np.zeros((0, model.config.text_config.hidden_size), np.float32)
