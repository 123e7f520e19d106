"""Constraint ``one-of``: the answer is one of some texts, as in ``{"one_of": ["yes", "no"]}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemma4_core import ConstraintBackend, InputError, Tokenizer, hookimpl

if TYPE_CHECKING:
    import numpy as np


class OneOf:
    """The ids of each text; ``end`` follows the last one of any."""

    def __init__(self, texts: Sequence[Sequence[int]], end: int, vocabulary: int) -> None:
        self.texts, self.words = [(*text, end) for text in texts], -(-vocabulary // 32)
        self.end, self.ids = end, []  # type: tuple[int, list[int]]

    def _next(self) -> set[int]:
        count = len(self.ids)
        found = {text[count] for text in self.texts if len(text) > count and list(text[:count]) == self.ids}
        return found or {self.end}

    def mask(self) -> np.ndarray:
        import numpy as np

        mask = np.zeros(self.words, np.uint32)
        for token in self._next():
            mask[token // 32] |= np.uint32(1 << token % 32)
        return mask

    def advance(self, token: int) -> None:
        self.ids.append(token)

    def rollback(self, tokens: int) -> None:
        del self.ids[len(self.ids) - tokens :]

    def forced(self) -> list[int]:
        found = self._next()
        return list(found) if len(found) == 1 else []


def build(tokenizer: Tokenizer, specification: Mapping[str, Any]) -> OneOf:
    """The constraint of one answer."""
    texts = specification.get("one_of")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f'one-of: {{"one_of": [texts]}} is all that it knows, not {list(specification)}')
    end = next((tokenizer.special_tokens[name] for name in ("<turn|>", "<eos>") if name in tokenizer.special_tokens), 1)
    return OneOf([tokenizer.encode(text, special=False) for text in texts], end, tokenizer.vocab_size)


@hookimpl
def gemma4_constraints() -> list[ConstraintBackend]:
    return [ConstraintBackend("one-of", "the answer is one of some texts", build)]
