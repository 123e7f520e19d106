"""How tokens are chosen: checked settings, and the device tensors that a sampling graph takes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.sampling import SamplingState


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def of(cls, temperature: float, **settings: float | None) -> Sampling:
        """Sampling from keyword arguments where None means off. Raises InputError naming setting and value."""
        return cls(temperature, **{name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        self._within("temperature", self.temperature, 0.0, math.inf)
        self._within("top_k", self.top_k, 0, 1 << 30)
        self._within("top_p", self.top_p, 0.0, 1.0)
        self._within("min_p", self.min_p, 0.0, 1.0)
        self._within("repetition_penalty", self.repetition_penalty, 1e-6, math.inf)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise InputError(f"seed {shown(self.seed)}: must be a whole number from 0")

    @staticmethod
    def _within(name: str, value: float, low: float, high: float) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
            or value == math.inf
        ):
            bounds = f"from {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise InputError(f"{name} {shown(value)}: must be a number {bounds}")

    @property
    def plain(self) -> bool:
        """Whether the choice is simply the largest logit."""
        return self.repetition_penalty == 1.0 and (self.temperature == 0.0 or self.top_k == 1)

    def state(self, vocab_size: int, prompt: Sequence[int], device: str) -> SamplingState | None:
        """Device tensors for one generation, None where the choice is plain. Without a seed one is drawn."""
        if self.plain:
            return None
        marks = np.zeros((1, vocab_size), np.bool_)
        if self.repetition_penalty != 1.0:
            marks[0, np.unique(prompt)] = True
        seed = secrets.randbits(32) if self.seed is None else self.seed
        params = np.array(
            [self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty], np.float32
        )
        arrays = (params, np.array([seed & 0xFFFFFFFF], np.uint32), marks)
        return SamplingState(*(upload(array, device) for array in arrays))
