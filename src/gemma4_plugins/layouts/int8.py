"""Weights of symmetric row-wise int8: computed in place, the scale applied after the sum."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.weights import ExpertStack, Matrix


class Int8Matrix(Matrix):
    """``[out, in]`` int8 with one fp32 scale per output row."""

    def __init__(self, tensor: Tensor, scale: Tensor, dtype: DType) -> None:
        self.tensor, self.scale, self.dtype = tensor, scale, dtype
        self.shape = (int(tensor.shape[0]), int(tensor.shape[1]))

    def parts(self) -> Mapping[str, Tensor]:
        return {"": self.tensor, "_scale": self.scale}

    def row_scaled(self) -> tuple[Tensor, Tensor]:
        return self.tensor, self.scale

    def matmul(self, x: Tensor) -> Tensor:
        # every int8 number is exact in bfloat16, so the cast inside the sum loses nothing
        return (x.linear(self.tensor.cast(x.dtype).transpose(), dtype=dtypes.float32) * self.scale).cast(x.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        return (self.tensor[ids].cast(dtypes.float32) * self.scale[ids].unsqueeze(-1)).cast(self.dtype)

    def dense(self) -> Tensor:
        return (self.tensor.cast(dtypes.float32) * self.scale.unsqueeze(-1)).cast(self.dtype)


class Int8Stack(ExpertStack):
    """``[experts, out, in]`` int8 with fp32 scales ``[experts, out]``."""

    def __init__(self, tensor: Tensor, scale: Tensor, dtype: DType) -> None:
        self.tensor, self.scale, self.dtype = tensor, scale, dtype
        experts, out, inner = tensor.shape
        self.shape = (int(experts), int(out), int(inner))

    def parts(self) -> Mapping[str, Tensor]:
        return {"": self.tensor, "_scale": self.scale}

    def selected(self, x: Tensor, experts: Tensor) -> Tensor:
        chosen = self.tensor[experts].cast(x.dtype)  # [n, k, out, in]
        sums = (x.unsqueeze(-2) * chosen).sum(-1, dtype=dtypes.float32)  # [n, k, out]
        return (sums * self.scale[experts]).cast(x.dtype)

    def every(self, x: Tensor) -> Tensor:
        x = x if x.ndim == 3 else x.unsqueeze(0)  # [1 or experts, n, in]
        sums = x.matmul(self.tensor.cast(x.dtype).transpose(-1, -2), dtype=dtypes.float32)
        return (sums * self.scale.unsqueeze(1)).cast(x.dtype)

    def dense(self) -> Tensor:
        return (self.tensor.cast(dtypes.float32) * self.scale.unsqueeze(-1)).cast(self.dtype)
