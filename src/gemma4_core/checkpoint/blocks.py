"""Weights to be written, as named blocks of fp32 rows: what every format's ``save`` gets.

Blocks are numpy arrays in host memory, so that writing a checkpoint needs neither a device nor a compiler. Of a weight
that is in a file, no more than one block is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from gemma4_core.checkpoint.convert import STORED, convert, float32_values
from gemma4_core.checkpoint.shard import StoredRows
from gemma4_core.contracts import WeightBlocks
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix

BLOCK = 1 << 22
"""Numbers in a block: 16 MiB in fp32."""
MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class RowBlocks:
    """A weight of two or more dimensions that is read by rows, as ``WeightSource.row_reader`` gives them."""

    name: str
    shape: tuple[int, ...]
    role: str
    dtype: str
    read: Callable[[np.ndarray], np.ndarray]
    """fp32 values by indices of the first axis."""
    hold: Callable[[], Matrix | ExpertStack] | None = None
    """Reads it as the object that the model would hold."""

    @property
    def held(self) -> Matrix | ExpertStack | None:
        """See ``WeightBlocks.held``; read each time."""
        return None if self.hold is None else self.hold()

    def blocks(self) -> Iterator[np.ndarray]:
        """fp32 rows in order: ``[n, *shape[1:]]``."""
        for first, count in runs(self.shape):
            yield self.read(np.arange(first, first + count))

    def bits(self) -> Iterator[np.ndarray]:
        """The same as bits of ``dtype``."""
        stored = self.read if isinstance(self.read, StoredRows) and self.read.entry.dtype == self.dtype else None
        for first, count in runs(self.shape):
            if stored is not None and stored.in_file:
                yield stored.run(first, count)
            else:
                yield convert(self.read(np.arange(first, first + count)), "F32", self.dtype)


@dataclass(frozen=True)
class TensorBlocks:
    """A weight that is held as a tensor, a matrix or a stack, or that is made when it is written."""

    name: str
    shape: tuple[int, ...]
    role: str
    dtype: str
    make: Callable[[], Tensor]
    """Gives the dense tensor, of ``dtype``."""
    held: Matrix | ExpertStack | None = None
    """What it is the dense form of."""

    def blocks(self) -> Iterator[np.ndarray]:
        """fp32 rows in order: ``[n, *shape[1:]]``; a scalar is one block of shape ``[]``."""
        bits = self._array()
        if len(self.shape) < 2:
            yield float32_values(bits, self.dtype)
            return
        for first, count in runs(self.shape):
            yield float32_values(bits[first : first + count], self.dtype)

    def bits(self) -> Iterator[np.ndarray]:
        """The whole weight as bits of ``dtype``."""
        yield self._array()

    def _array(self) -> np.ndarray:
        return np.frombuffer(host_bytes(self.make()), STORED[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class SavedWeights(Sequence[WeightBlocks]):
    """All weights of a checkpoint to be written, in order."""

    weights: Sequence[WeightBlocks]
    shard_bytes: int = MAX_SHARD_BYTES
    """Bytes of data in one safetensors file, exceeded only by a single larger tensor."""
    resume: Path | None = None
    """Folder in which finished safetensors files wait for the others, so that an interrupted run can resume."""

    @overload
    def __getitem__(self, index: int) -> WeightBlocks: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[WeightBlocks]: ...
    def __getitem__(self, index: int | slice) -> WeightBlocks | Sequence[WeightBlocks]:
        return self.weights[index]

    def __len__(self) -> int:
        return len(self.weights)


def blocks_of(name: str, value: Tensor | Matrix | ExpertStack, role: str) -> TensorBlocks:
    """A weight of a model on its way to a file. Raises CheckpointError for a dtype that checkpoints do not have."""
    from gemma4_core.checkpoint.upload import NAMES
    from gemma4_core.weights import ExpertStack, Matrix

    dtype = NAMES.get(value.dtype)
    if dtype not in STORED:
        raise CheckpointError(f"tensor {shown(name)} has dtype {value.dtype}; weights are {', '.join(STORED)}")
    shape = tuple(int(size) for size in value.shape)
    if isinstance(value, Matrix | ExpertStack):
        return TensorBlocks(name, shape, role, dtype, value.dense, value)
    return TensorBlocks(name, shape, role, dtype, lambda: value)


def runs(shape: Sequence[int], size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """First index and count of runs of the first axis with about ``size`` numbers each."""
    step = max(1, size // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield first, min(step, shape[0] - first)


def host_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in host memory; on a CPU device they are not copied."""
    buffer: Any = tensor.contiguous().realize().uop.buffer.ensure_allocated()
    view: memoryview = buffer.as_memoryview(allow_zero_copy=True)
    return view
