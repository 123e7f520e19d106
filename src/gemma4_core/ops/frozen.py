"""Products with matrices that do not train, in whatever storage they are held."""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, UOp, function
from tinygrad.dtype import DType

from gemma4_core.ops.fused import Fused
from gemma4_core.ops.multiply import Multiply, by_argument, made
from gemma4_core.ops.products import materialized
from gemma4_core.weights import DenseMatrix, Matrix


def readable(matrix: Matrix) -> bool:
    """Whether a product may read the matrix itself. Kinds derived from DenseMatrix have products of their own."""
    return type(matrix) is DenseMatrix or not isinstance(matrix, DenseMatrix)


def whole(matrix: Matrix, dtype: DType) -> Tensor:
    """A matrix ``[out, in]`` in memory as products read it. One in another storage is unpacked, for each use anew: kept
    from the forward pass to the backward pass it would take what that storage saves."""
    if type(matrix) is DenseMatrix:
        return matrix.tensor
    return materialized(matrix.dense().cast(dtype))


@dataclass(frozen=True, eq=False)
class Frozen:
    """A matrix ``[out, in]`` over a device's products and kernels. What the device can unpack inside a product stays
    packed."""

    matrix: Matrix
    matmul: Multiply | None
    fused: Fused

    def product(self, x: Tensor, form: str) -> Tensor:
        """``x [n, in]`` times the transpose (form "nt"), or ``x [n, out]`` times the matrix ("nn"), in x's dtype."""
        found = self.unpacked_inside(x, form)
        return made(self.matmul, x, whole(self.matrix, x.dtype), form) if found is None else found

    def unpacked_inside(self, x: Tensor, form: str) -> Tensor | None:
        """As ``product``, where the device unpacks the matrix inside."""
        packed = self.matrix.row_scaled()
        if packed is None or self.fused.scaled_product is None:
            return None
        return self.fused.scaled_product(x, *packed, form)

    def both(self, x: Tensor, x2: Tensor, w2: Tensor, form: str) -> Tensor | None:
        """``product`` plus ``x2 @ w2.T`` ("nt") or ``x2 @ w2`` ("nn") by one kernel, None where there is none."""
        packed = self.matrix.row_scaled()
        if packed is not None and self.fused.scaled_two_products is not None:
            found = self.fused.scaled_two_products(x, *packed, x2, w2, form)
            if found is not None:
                return found
        if self.fused.two_products is None:
            return None
        return self.fused.two_products(x, whole(self.matrix, x.dtype), x2, w2, form)


def frozen_rows(x: Tensor, base: Frozen) -> Tensor | None:
    """Rows ``x [n, in]``, in memory, through a packed matrix that the device unpacks inside of its products, with a
    gradient of x alone: ``[n, out]``. None where the device does not serve that."""
    if base.unpacked_inside(x, "nt") is None:
        return None

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        return by_argument(call, {x.uop: base.product(Tensor(seed).cast(x.dtype).contiguous(), "nn").contiguous()})

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(x: Tensor) -> Tensor:
        return base.product(x, "nt")

    found: Tensor = run(x)
    return found.contiguous()
