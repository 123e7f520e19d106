"""How tokens are chosen: checked settings."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma4_core.engine.sequence import Choices
from gemma4_core.errors import InputError
from gemma4_core.formatting import shown


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0, repetition_penalty 1, presence_penalty
    0 and frequency_penalty 0 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
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
        self._within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self._within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
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

    def choices(self, **others: Any) -> Choices:
        """How a sequence's tokens are chosen. Without a seed one is drawn."""
        temperature = 0.0 if self.top_k == 1 else self.temperature
        params = np.array([temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty,
                           self.presence_penalty, self.frequency_penalty], np.float32)  # fmt: skip
        return Choices(params, secrets.randbits(32) if self.seed is None else self.seed, **others)
