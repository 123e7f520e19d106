"""Media laid out so that a tower encodes all of them in one run, as training does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tinygrad import Tensor


@dataclass(frozen=True)
class ArrangedMedia:
    """Several media made ready on the host."""

    arrays: tuple[np.ndarray, ...]
    """What the tower's ``encode_arranged`` takes; few different shapes, since a step is captured for each."""
    rows: Sequence[np.ndarray]
    """For each medium in order, the rows of the result that are its soft tokens; other rows are padding."""
    count: int
    """Rows of the result."""


@runtime_checkable
class ArrangingTower(Protocol):
    """A tower whose work splits into one part on the host and one on the device. Training steps with media are
    captured where all their towers are of this kind."""

    def arrange(self, features: Mapping[str, Any]) -> ArrangedMedia:
        """Check features and lay them out. Raises InputError."""

    def encode_arranged(self, *arrays: Tensor) -> Tensor:
        """``[count, hidden]`` with gradients to the weights; reads nothing from the host."""
