"""Weights that stay on the host and are read a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BLOCK = 1 << 22
"""Numbers in a block: 16 MiB in fp32."""


class HostWeight:
    """A weight of any rank that is not on a device. What writes checkpoints takes it in place of a matrix.

    ``read`` maps indices of the first axis to fp32 values, as ``WeightSource.row_reader`` returns it.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: Any) -> None:
        self.read, self.shape, self.dtype = read, shape, dtype

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """fp32 values in order, some indices of the first axis at a time: ``[n, *shape[1:]]``."""
        step = max(1, size // max(1, math.prod(self.shape[1:])))
        for first in range(0, self.shape[0], step):
            yield self.read(np.arange(first, min(first + step, self.shape[0])))

    def dense(self) -> Any:
        """The whole as a tensor in plain memory; no kernel is compiled for it."""
        from tinygrad import Tensor

        from gemma4_core.checkpoint.convert import convert
        from gemma4_core.checkpoint.upload import NAMES, copy_in

        bits = convert(np.ascontiguousarray(self.read(np.arange(self.shape[0]))), "F32", NAMES[self.dtype])
        tensor = Tensor.empty(*self.shape, dtype=self.dtype, device="PYTHON")
        copy_in(tensor.uop.buffer.ensure_allocated(), 0, bits.reshape(-1), self.dtype)
        return tensor
