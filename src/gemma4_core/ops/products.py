"""Products of matrices in the form that tinygrad's code generator knows as work for tensor cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from weakref import WeakKeyDictionary

from tinygrad import Device, Tensor, UOp, dtypes
from tinygrad.dtype import DType
from tinygrad.helpers import Context as TinygradContext
from tinygrad.uop import Ops

from gemma4_core.weights import DenseMatrix, Matrix

TILE = 16
"""Fewer rows than this fill no tile of a matrix unit."""


@lru_cache
def has_tensor_cores(device: str, dtype: DType) -> bool:
    """Whether tinygrad's code generator multiplies matrices of this type in hardware there, with fp32 accumulation."""
    # layers that training recomputes are traced with devices locked
    with TinygradContext(ALLOW_DEVICE_USAGE=1):
        cores = getattr(Device[device].renderer, "tensor_cores", ()) or ()
    return any(core.dtype_in == dtype and core.dtype_out == dtypes.float32 for core in cores)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a [..., n, k] @ b [..., k, m]`` in fp32.

    Only products of narrow operands are recognised as work for tensor cores, and only there are they exact: elsewhere
    each product would be rounded before it is added, so operands are widened first.
    """
    if has_tensor_cores(str(a.device), a.dtype):
        return a.matmul(b, dtype=dtypes.float32)
    return a.cast(dtypes.float32).matmul(b.cast(dtypes.float32))


def linear(x: Tensor, matrix: Matrix, other: Callable[[Tensor, Matrix], Tensor]) -> Tensor:
    """``x [n, in]`` times ``matrix [out, in]`` transposed: ``[n, out]`` in x's dtype, operand and result realized.

    On tensor cores where there are some for these rows, which takes a product with nothing fused into it; else by
    ``other``. Kinds derived from DenseMatrix have products of their own.
    """
    x = materialized(x)
    fits = int(x.shape[0]) >= TILE and has_tensor_cores(str(x.device), x.dtype)
    if fits and type(matrix) is DenseMatrix and x.dtype == matrix.tensor.dtype:
        return materialized(product(x, matrix.tensor.transpose()).cast(x.dtype))
    return materialized(other(x, matrix))


def materialized(x: Tensor) -> Tensor:
    """``x``, in memory, and its gradient too.

    For operands and results of products that are differentiated: fused into a product, what makes an operand would be
    computed anew for every row or column of the result.
    """
    return materialized_gradient(x).contiguous()


def materialized_gradient(x: Tensor) -> Tensor:
    """``x``, whose gradient from this one use is in memory.

    Equal nodes of tinygrad's graph are one node. Several products of the same ``x`` would share a plain
    ``contiguous_backward``, and their gradients would be one kernel with a loop for each, which no tensor core runs.
    """
    use = uses[x.uop] = uses.get(x.uop, -1) + 1
    return Tensor(x.uop.alu(Ops.CONTIGUOUS_BACKWARD, arg=use))


uses: WeakKeyDictionary[UOp, int] = WeakKeyDictionary()
"""How often a gradient was materialized, by the node that it is of."""
