"""Texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemma4_core.engine.engine import Engine
from gemma4_core.errors import InputError
from gemma4_core.generation.tokens import check_prompt
from gemma4_core.processing.processor import GemmaMultimodalProcessor


def embed(engine: Engine, processor: GemmaMultimodalProcessor, texts: str | Sequence[str]) -> np.ndarray:
    """See ``LoadedModel.embed``."""
    model, vectors = engine.model, []
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            raise InputError(f"embed takes texts, not {type(text).__name__}")
        if not text:
            raise InputError(f"embed: text {number} is empty; leave it out, or give it at least one character")
        prompt = check_prompt(model, processor.prepare_inputs(text).input_ids, 0, None, {})
        hidden, _ = engine.hidden_states(prompt.cache, prompt.placed)  # [1, T, H]
        mean = hidden[0].mean(0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors) if vectors else np.zeros((0, model.config.text_config.hidden_size), np.float32)
