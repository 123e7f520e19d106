"""How weights are held and applied.

A checkpoint format hands out every 2-D weight as a ``Matrix`` and every stack of experts as an ``ExpertStack``; they
keep their storage type on the device. The model refers to them through ``Weight`` holders that carry the full
checkpoint name, so that a transform can wrap or replace one by its path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType


class InputDropout(Protocol):
    """Drops numbers of an input while training is under way: ``gemma4_core.ops.dropout``."""

    @property
    def drops(self) -> bool:
        """Whether anything is dropped now."""

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with numbers dropped, or its gradient likewise."""


class LowRankChange(Protocol):
    """``scale * b @ a``, added to a matrix ``[out, in]`` that is not changed itself."""

    @property
    def a(self) -> Tensor:
        """``[r, in]``."""

    @property
    def b(self) -> Tensor:
        """``[out, r]``."""

    @property
    def scale(self) -> float: ...

    @property
    def dropout(self) -> InputDropout | None:
        """What drops numbers of its input while it trains."""


class Matrix(ABC):
    """A weight ``[out, in]`` of a linear layer, an embedding table, or both (the tied head)."""

    shape: tuple[int, int]
    dtype: DType
    """The type that it computes in and that ``matmul`` and ``rows`` return."""

    @abstractmethod
    def parts(self) -> Mapping[str, Tensor]:
        """Storage tensors by the suffix that follows the checkpoint name: ``{"": weight}``, perhaps scales."""

    @abstractmethod
    def matmul(self, x: Tensor) -> Tensor:
        """``x [..., in]`` times the transpose: ``[..., out]`` in ``x``'s dtype, accumulated in fp32."""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Rows by integer ids ``[...]``: ``[..., in]``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The whole matrix ``[out, in]`` in ``dtype``."""

    def row_scaled(self) -> tuple[Tensor, Tensor] | None:
        """int8 numbers ``[out, in]`` and fp32 scales ``[out]`` that the matrix is the product of, where it is held so:
        kernels unpack them inside a product."""
        return None

    def adapted(self) -> tuple[Matrix, Sequence[LowRankChange]]:
        """A base and the changes beside it that make up this matrix, for training, which computes them in one go: no
        gradient of the base is made, and those of a and b are fp32. Without changes the base is the matrix itself."""
        return self, ()


class ExpertStack(ABC):
    """Weights ``[experts, out, in]`` of which a token uses a few."""

    shape: tuple[int, int, int]
    dtype: DType

    @abstractmethod
    def parts(self) -> Mapping[str, Tensor]:
        """Storage tensors by suffix, as ``Matrix.parts``."""

    @abstractmethod
    def selected(self, x: Tensor, experts: Tensor) -> Tensor:
        """``x [n, k or 1, in]`` through the chosen ``experts [n, k]``: ``[n, k, out]``, accumulated in fp32."""

    @abstractmethod
    def every(self, x: Tensor) -> Tensor:
        """``x [n, in]`` or ``[experts, n, in]`` through every expert: ``[experts, n, out]``."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The whole stack ``[experts, out, in]`` in ``dtype``."""


@dataclass(eq=False)
class Weight:
    """A place in the model that holds a matrix or an expert stack under its full checkpoint name."""

    name: str
    matrix: Matrix | ExpertStack


class DenseMatrix(Matrix):
    """An ordinary tensor ``[out, in]``; what training updates."""

    def __init__(self, tensor: Tensor, dtype: DType | None = None) -> None:
        self.tensor = tensor
        self.shape = (int(tensor.shape[0]), int(tensor.shape[1]))
        self.dtype = dtype or tensor.dtype

    def parts(self) -> Mapping[str, Tensor]:
        return {"": self.tensor}

    def matmul(self, x: Tensor) -> Tensor:
        return x.linear(self.tensor.transpose(), dtype=dtypes.float32).cast(x.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        return self.tensor[ids].cast(self.dtype)

    def dense(self) -> Tensor:
        return self.tensor.cast(self.dtype)


class DenseStack(ExpertStack):
    """An ordinary tensor ``[experts, out, in]``."""

    def __init__(self, tensor: Tensor, dtype: DType | None = None) -> None:
        self.tensor = tensor
        experts, out, inner = tensor.shape
        self.shape = (int(experts), int(out), int(inner))
        self.dtype = dtype or tensor.dtype

    def parts(self) -> Mapping[str, Tensor]:
        return {"": self.tensor}

    def selected(self, x: Tensor, experts: Tensor) -> Tensor:
        chosen = self.tensor[experts]  # [n, k, out, in]
        return (x.unsqueeze(-2) * chosen).sum(-1, dtype=dtypes.float32).cast(x.dtype)

    def every(self, x: Tensor) -> Tensor:
        x = x if x.ndim == 3 else x.unsqueeze(0)  # [1 or experts, n, in]
        return x.matmul(self.tensor.transpose(-1, -2), dtype=dtypes.float32).cast(x.dtype)

    def dense(self) -> Tensor:
        return self.tensor.cast(self.dtype)
