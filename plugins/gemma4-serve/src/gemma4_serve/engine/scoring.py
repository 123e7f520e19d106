"""``Scoring``: what a model thinks of a prompt's tokens, computed piece by piece between steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemma4_core import LoadedModel
from gemma4_core.openai import alone
from gemma4_serve.engine.contract import Scored

VALUES = 1 << 24
"""Logits at once: 64 MB."""


class Scoring:
    """Log-probabilities of a prompt's tokens, and of the ``top`` likeliest ones in their places."""

    def __init__(self, model: LoadedModel, ids: list[int], top: int) -> None:
        self.model, self.ids, self.top = model, ids, top
        self.piece = max(1, min(512, VALUES // model.config.text_config.vocab_size))
        self.at = 0
        self.cache: Any = None
        self.found: list[tuple[float | None, dict[str, float] | None]] = [(None, None)]

    @property
    def done(self) -> bool:
        """Whether all tokens are scored."""
        return self.at >= len(self.ids)

    def step(self) -> None:
        """Score the next piece; runs in the device's thread. Raises InputError for ids outside the vocabulary."""
        if self.cache is None:
            self.cache = self.model.make_cache(max_context=len(self.ids))
        piece = self.ids[self.at : self.at + self.piece]
        logits, self.cache = self.model.forward_ids(piece, self.cache)
        values = logits.numpy()[0].astype(np.float32)  # [n, V]
        values -= values.max(-1, keepdims=True)
        values -= np.log(np.exp(values).sum(-1, keepdims=True))
        for row, token in zip(values, self.ids[self.at + 1 : self.at + 1 + len(piece)], strict=False):
            best = np.argsort(-row)[: self.top]
            top = {alone(int(one), self.model.tokenizer): float(row[one]) for one in best} if self.top else None
            self.found.append((float(row[token]), top))
        self.at += len(piece)

    def scored(self) -> Scored:
        """The result, once all is done."""
        stream = self.model.tokenizer.stream()
        tokens = [stream.add(token) for token in self.ids]
        tokens[-1] += stream.flush()
        return Scored("".join(tokens), tuple(tokens), tuple(one for one, _ in self.found),
                      tuple(top for _, top in self.found))  # fmt: skip
