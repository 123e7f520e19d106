"""What towers have in common: media one by one, captured and kept, or differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.processing.captured import Captured
from gemma4_plugins.modalities.clipped import TowerWeights


class EncodingTower(ABC):
    """A tower that encodes media one by one. Subclasses set ``weights`` and ``captured``."""

    keywords: tuple[str, ...]
    """The features that it takes."""
    weights: TowerWeights
    captured: Captured

    def parameters(self) -> Mapping[str, Tensor]:
        """Its tensors by full checkpoint name."""
        return self.weights.parameters()

    def forget(self) -> None:
        """Drop captured graphs and kept soft tokens."""
        self.captured.forget()

    def encode(self, features: Mapping[str, Any], *, capture: bool = False) -> list[Tensor]:
        """Soft tokens ``[n, hidden]`` of each medium. Raises InputError."""
        media = list(zip(*self._read(features), strict=True))
        if not capture:
            return [self._differentiable(*medium) for medium in media]
        keys = self.digests(features)
        return [self.captured.kept(key, partial(self._run, *medium)) for key, medium in zip(keys, media, strict=True)]

    def digests(self, features: Mapping[str, Any]) -> list[bytes]:
        """A content hash of each medium."""
        return self.captured.digests([features.get(name) for name in self.keywords], self._read(features))

    @abstractmethod
    def _read(self, features: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Checked features, the first axis of each counting media. Raises InputError."""

    @abstractmethod
    def _run(self, values: np.ndarray, extent: np.ndarray) -> Tensor:
        """Soft tokens of one medium through captured graphs."""

    @abstractmethod
    def _differentiable(self, values: np.ndarray, extent: np.ndarray) -> Tensor:
        """Soft tokens of one medium with gradients to the weights."""
