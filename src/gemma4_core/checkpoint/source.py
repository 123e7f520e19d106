"""Base classes of formats' open checkpoints: from fp32 rows, or from safetensors files, to tensors on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.blocks import runs
from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.contracts import TensorInfo
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix


class RowSource(ABC):
    """A ``WeightSource`` of a format that decodes rows to fp32. Subclasses define ``infos`` and ``read``."""

    infos: Mapping[str, TensorInfo]

    @abstractmethod
    def read(self, name: str, rows: np.ndarray | None) -> np.ndarray:
        """fp32 values of a tensor: those at indices ``[...]`` of its first axis, or for None all of them. Raises
        CheckpointError."""

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A realized tensor on a device; rows are decoded and copied a block at a time, without a kernel."""
        from tinygrad import Device, Tensor

        from gemma4_core.checkpoint.convert import convert
        from gemma4_core.checkpoint.upload import NAMES, copy_in, offsets_work

        if name not in self.infos:
            raise CheckpointError(f"the checkpoint has no tensor {shown(name)}")
        shape, stored = self.infos[name].shape, NAMES[dtype]
        tensor = Tensor.empty(*shape, dtype=dtype, device=device)
        if 0 in shape:
            return tensor
        buffer, done = tensor.uop.buffer.ensure_allocated(), 0
        by_rows = len(shape) >= 2 and offsets_work(device)
        for rows in (np.arange(first, first + count) for first, count in runs(shape)) if by_rows else (None,):
            bits = convert(np.asarray(self.read(name, rows), np.float32), "F32", stored).reshape(-1)
            copy_in(buffer, done, bits, dtype)
            done += bits.nbytes
        Device[device].synchronize()
        return tensor

    def matrix(self, name: str, device: str, dtype: Any) -> Matrix:
        """The matrix ``[out, in]`` as an ordinary tensor."""
        from gemma4_core.weights import DenseMatrix

        return DenseMatrix(self.tensor(name, device, dtype))

    def stack(self, name: str, device: str, dtype: Any) -> ExpertStack:
        """The experts ``[experts, out, in]`` as an ordinary tensor."""
        from gemma4_core.weights import DenseStack

        return DenseStack(self.tensor(name, device, dtype))

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]``."""
        if not in_memory:
            return lambda ids: self.read(name, np.asarray(ids))
        held = self.read(name, None)
        return lambda ids: held[ids]

    def close(self) -> None:  # noqa: B027 (most formats have nothing to close)
        """Release file handles; tensors handed out stay valid."""


class FileSource(RowSource):
    """Weights of safetensors files as they are stored, converted to the run-time dtype on the way."""

    def __init__(self, files: CheckpointFiles) -> None:
        self.files, self.infos = files, files.infos

    def read(self, name: str, rows: np.ndarray | None) -> np.ndarray:
        """fp32 values of rows, or of the whole tensor."""
        from gemma4_core.checkpoint.convert import float32_values

        if rows is None:
            return float32_values(self.files.array(name), self.infos[name].dtype)
        return self.files.rows(name, in_memory=False)(rows)

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A realized tensor on a device."""
        return self.files.tensor(name, device, dtype)

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]``."""
        return self.files.rows(name, in_memory)

    def close(self) -> None:
        """Close the files; what was handed out stays valid."""
        self.files.close()
