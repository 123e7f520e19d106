"""Rows of embedding tables, with a gradient that costs what the rows do and not what the table does."""

from __future__ import annotations

from tinygrad import Tensor, UOp, dtypes, function

from gemma4_core.ops.products import product
from gemma4_core.weights import DenseMatrix, Matrix


def trainable_rows(matrix: Matrix, ids: Tensor) -> Tensor:
    """As ``matrix.rows``: int ``ids [...]`` to ``[..., in]``.

    tinygrad's own gradient compares every row of the table with every id for each of its columns: for 1024 ids of
    E2B's per-layer table half a second of an H200. Tables that have fewer rows than there are ids are left to it, and
    so are kinds derived from DenseMatrix.
    """
    if type(matrix) is not DenseMatrix or matrix.shape[0] < ids.numel():
        return matrix.rows(ids)

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        found = scattered(Tensor(seed), ids, matrix.shape[0]).cast(matrix.tensor.dtype)
        return tuple(found.uop if arg is matrix.tensor.uop else None for arg in call.src[1:])

    @function(grad_fxn=gradient)
    def rows(table: Tensor, ids: Tensor) -> Tensor:
        return table[ids]

    chosen: Tensor = rows(matrix.tensor, ids)
    return chosen.cast(matrix.dtype)


def scattered(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """Sums of the rows of ``values [..., D]`` whose ``ids [...]`` are equal, each at its id: ``[count, D]``, else 0.

    The sums are one product with the matrix that says which ids are equal; the table then looks up where its sum is.
    """
    flat = ids.reshape(-1)  # [...] -> [n]
    rows = values.reshape(-1, values.shape[-1]).contiguous()  # [..., D] -> [n, D]
    equal = (flat.unsqueeze(1) == flat.unsqueeze(0)).cast(rows.dtype).contiguous()  # [n, n]
    sums = product(equal, rows).cast(rows.dtype).contiguous()
    here = flat.unsqueeze(0) == Tensor.arange(count, dtype=flat.dtype).unsqueeze(1)  # [count, n]
    number = Tensor.arange(int(flat.shape[0]), dtype=dtypes.int32).unsqueeze(0)
    place = here.where(number, -1).max(1).contiguous()  # [count]
    return (place >= 0).unsqueeze(1).where(sums[place.maximum(0)], 0.0)
