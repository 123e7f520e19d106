"""What towers share: media are encoded one by one through captured graphs and cached, or together with gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.contracts.arranged_media import ArrangedMedia
from gemma4_core.ops.graphs import upload
from gemma4_core.processing.tower_graphs import Captured
from gemma4_core.weights import Weight
from gemma4_plugins.modalities.clipped import TowerWeights


class EncodingTower(ABC):
    """A tower that encodes media one by one, or together where gradients are wanted. Subclasses set ``device``,
    ``weights`` and ``captured``."""

    keywords: tuple[str, ...]
    """The features that it takes."""
    device: str
    weights: TowerWeights
    captured: Captured

    def parameters(self) -> Mapping[str, Tensor]:
        """Its tensors by full checkpoint name."""
        return self.weights.parameters()

    @property
    def places(self) -> Mapping[str, Weight]:
        """Its matrices by full checkpoint name."""
        return self.weights.places

    def forget(self) -> None:
        """Drop captured graphs and cached soft tokens."""
        self.captured.forget()

    def forget_tokens(self) -> None:
        """Drop cached soft tokens."""
        self.captured.forget_tokens()

    def encode(self, features: Mapping[str, Any], *, capture: bool = False) -> list[Tensor]:
        """Soft tokens ``[n, hidden]`` of each medium. Raises InputError."""
        if not capture:
            return self._differentiable(self.arrange(features))
        media = list(zip(*self._read(features), strict=True))
        keys = self.digests(features)
        return [self.captured.cached(key, partial(self._run, *medium)) for key, medium in zip(keys, media, strict=True)]

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
    def arrange(self, features: Mapping[str, Any]) -> ArrangedMedia:
        """Media laid out together, each padded to the captured size of the largest. Raises InputError."""

    @abstractmethod
    def encode_arranged(self, values: Tensor, extent: Tensor) -> Tensor:
        """Soft tokens of arranged media, padding included, with gradients to the weights."""

    def _differentiable(self, arranged: ArrangedMedia) -> list[Tensor]:
        if not arranged.rows:
            return []
        values, extent = (upload(array, self.device) for array in arranged.arrays)
        # realized: otherwise slicing moves up into the layers, and every number of tokens compiles kernels of its own
        tokens = self.encode_arranged(values, extent).contiguous()
        return [rows_of(tokens, rows) for rows in arranged.rows]


def rows_of(tokens: Tensor, rows: np.ndarray) -> Tensor:
    """Some rows of ``tokens [n, hidden]``; a slice where they are contiguous."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1:
        return tokens[first : last + 1]
    return tokens[upload(rows.astype(np.int32), str(tokens.device))]
