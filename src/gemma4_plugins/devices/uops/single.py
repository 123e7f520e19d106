"""Single operations: our own kernels for one row, and for several rows the form that tinygrad maps to tensor cores."""

from __future__ import annotations

import math

from tinygrad import Tensor, dtypes

from gemma4_core.ops import products
from gemma4_core.ops.portable import gelu_tanh
from gemma4_core.ops.portable import linear as portable_linear
from gemma4_core.ops.portable import logits as portable_logits
from gemma4_core.weights import Matrix
from gemma4_plugins.devices.uops.product import Layout, Stored, plain_product, stored_rows


def in_layout(x: Tensor, layout: Layout) -> Tensor:
    """``x [size]`` as fp32, in the layout that a matrix needs for its operand."""
    wide = x.cast(dtypes.float32)
    if layout.planes > 1:
        # [vectors * planes * 4] -> [planes * vectors * 4]
        wide = wide.reshape(-1, layout.planes, 4).permute(1, 0, 2).flatten()
    return wide.contiguous()


def row_of(x: Tensor, matrix: Matrix) -> Stored | None:
    """The matrix as kernels read it, if ``x`` is a single row."""
    single = all(isinstance(n, int) for n in x.shape) and math.prod(x.shape[:-1]) == 1
    return stored_rows(matrix) if single else None


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """``x [..., in]`` times the transpose: ``[..., out]`` in x's dtype."""
    rows = row_of(x, matrix)
    if rows is None:
        # [..., in] -> [n, in] -> [n, out] -> [..., out]
        found = products.linear(x.reshape(-1, x.shape[-1]), matrix, portable_linear)
        return found.reshape(*x.shape[:-1], matrix.shape[0])
    # [out] -> [..., out]
    return plain_product(in_layout(x.flatten(), rows.layout), rows).reshape(*x.shape[:-1], rows.rows).cast(x.dtype)


def logits(h: Tensor, head: Matrix, softcap: float | None) -> Tensor:
    """``h [..., H]`` times the tied head, soft-capped, fp32 ``[..., V]``."""
    rows = row_of(h, head)
    if rows is None:
        return portable_logits(h, head, softcap)
    # [V] -> [..., V]
    raw = plain_product(in_layout(h.flatten(), rows.layout), rows).reshape(*h.shape[:-1], rows.rows)
    return raw if softcap is None else (raw / softcap).tanh() * softcap


def gated_mlp(x: Tensor, gate: Matrix, up: Matrix, down: Matrix) -> Tensor:
    """``down(gelu_tanh(gate(x)) * up(x))``. The two products of the input stay separate, since one kernel with two
    loops would not use tensor cores."""
    first, second = (linear(x, matrix).contiguous() for matrix in (gate, up))
    return linear(gelu_tanh(first) * second, down)
