"""A matrix that wraps another one. Apart from ``scale`` so that listing plugins does not import tinygrad."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import Tensor

from gemma4_core import Matrix


class ScaledMatrix(Matrix):
    """``factor`` times another matrix, whose storage stays as it is."""

    def __init__(self, inner: Matrix, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.shape, self.dtype = inner.shape, inner.dtype

    def parts(self) -> Mapping[str, Tensor]:
        return {"": self.dense()}

    def matmul(self, x: Tensor) -> Tensor:
        return self.inner.matmul(x) * self.factor

    def rows(self, ids: Tensor) -> Tensor:
        return self.inner.rows(ids) * self.factor

    def dense(self) -> Tensor:
        return self.inner.dense() * self.factor
