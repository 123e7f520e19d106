"""The per-layer embedding table kept off the device: only one row per token is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.ops.graphs import upload


class HostTable:
    """Rows of a table in host memory or on disk, brought to the device when asked for."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], device: str, dtype: DType) -> None:
        self.read, self.device, self.dtype = read, device, dtype

    def rows(self, ids: np.ndarray) -> Tensor:
        """Ids ``[B, T]`` to realized rows ``[B, T, layers * P]`` on the device."""
        return upload(self.read(ids), self.device, self.dtype)
