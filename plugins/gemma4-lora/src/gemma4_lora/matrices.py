"""Weights with low-rank changes beside them, computed separately, so that the base is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinygrad import Tensor, dtypes

from gemma4_core import ExpertStack, Matrix
from gemma4_core.ops import Dropout


@dataclass(frozen=True, eq=False)
class LowRank:
    """``scale * b @ a`` on a device. The factors are fp32 and take part in products in the dtype of their input."""

    a: Tensor
    """``[r, in]``, or ``[experts, r, in]``."""
    b: Tensor
    """``[out, r]``, or ``[experts, out, r]``."""
    scale: float
    dropout: Dropout | None = None
    """Of the input, while it trains; not of stacks."""

    def matmul(self, x: Tensor) -> Tensor:
        """``x [..., in]`` (for stacks ``[experts or 1, n, in]``) to fp32 ``[..., out]``."""
        x = x if self.dropout is None else self.dropout(x)
        inner = x.matmul(self.a.cast(x.dtype).transpose(-1, -2), dtype=dtypes.float32).cast(x.dtype)  # [..., r]
        return inner.matmul(self.b.cast(x.dtype).transpose(-1, -2), dtype=dtypes.float32) * self.scale

    def selected(self, x: Tensor, experts: Tensor) -> Tensor:
        """``x [n, k or 1, in]`` through the chosen ``experts [n, k]``: fp32 ``[n, k, out]``."""
        inner = (x.unsqueeze(-2) * self.a.cast(x.dtype)[experts]).sum(-1, dtype=dtypes.float32)  # [n, k, r]
        inner = inner.cast(x.dtype).unsqueeze(-2)  # [n, k, 1, r]
        return (inner * self.b.cast(x.dtype)[experts]).sum(-1, dtype=dtypes.float32) * self.scale

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the change by ids ``[...]``: fp32 ``[..., in]``."""
        return self.b[ids].matmul(self.a) * self.scale

    def dense(self) -> Tensor:
        """The whole change in fp32, of the matrix's shape."""
        return self.b.matmul(self.a) * self.scale


def named_parts(base: Mapping[str, Tensor], changes: Sequence[LowRank]) -> dict[str, Tensor]:
    """The storage tensors of a base and of its changes, by suffix; from the second change on suffixes are numbered."""
    parts = dict(base)
    for number, change in enumerate(changes):
        end = f".{number}" if number else ""
        parts |= {f".lora_A{end}": change.a, f".lora_B{end}": change.b}
    return parts


class LoraMatrix(Matrix):
    """A matrix of any kind and the changes to it. Gradients reach the changes and the input, never the base."""

    def __init__(self, base: Matrix, changes: Sequence[LowRank]) -> None:
        self.base, self.changes = base, list(changes)
        self.shape, self.dtype = base.shape, base.dtype

    def parts(self) -> Mapping[str, Tensor]:
        return named_parts(self.base.parts(), self.changes)

    def matmul(self, x: Tensor) -> Tensor:
        total = self.base.matmul(x).cast(dtypes.float32)
        for change in self.changes:
            total = total + change.matmul(x)
        return total.cast(x.dtype)

    def adapted(self) -> tuple[Matrix, Sequence[LowRank]]:
        return self.base, self.changes

    def rows(self, ids: Tensor) -> Tensor:
        total = self.base.rows(ids).cast(dtypes.float32)
        for change in self.changes:
            total = total + change.rows(ids)
        return total.cast(self.dtype)

    def dense(self) -> Tensor:
        return summed(self.base.dense(), self.changes).cast(self.dtype)


class LoraStack(ExpertStack):
    """A stack of experts and the changes to it, separate ones for each expert."""

    def __init__(self, base: ExpertStack, changes: Sequence[LowRank]) -> None:
        self.base, self.changes = base, list(changes)
        self.shape, self.dtype = base.shape, base.dtype

    def parts(self) -> Mapping[str, Tensor]:
        return named_parts(self.base.parts(), self.changes)

    def selected(self, x: Tensor, experts: Tensor) -> Tensor:
        total = self.base.selected(x, experts).cast(dtypes.float32)
        for change in self.changes:
            total = total + change.selected(x, experts)
        return total.cast(x.dtype)

    def every(self, x: Tensor) -> Tensor:
        total = self.base.every(x).cast(dtypes.float32)
        wide = x if x.ndim == 3 else x.unsqueeze(0)  # [1 or experts, n, in]
        for change in self.changes:
            total = total + change.matmul(wide)
        return total.cast(x.dtype)

    def dense(self) -> Tensor:
        return summed(self.base.dense(), self.changes).cast(self.dtype)


def summed(base: Tensor, changes: Sequence[LowRank]) -> Tensor:
    """A dense base plus its changes, in fp32."""
    total = base.cast(dtypes.float32)
    for change in changes:
        total = total + change.dense()
    return total


def beside(base: Matrix | ExpertStack, changes: Sequence[LowRank]) -> LoraMatrix | LoraStack:
    """A weight with changes beside it."""
    return LoraMatrix(base, changes) if isinstance(base, Matrix) else LoraStack(base, changes)
