"""Kernels that a device brings for training: several operations in one, forward or backward.

None of them is differentiable itself: ``gemma4_core.ops.differentiable`` puts them together with their gradients. Each
gives None for what it does not serve, and then the portable form runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.ops.attention import Pattern

T = TypeVar("T")


@dataclass(frozen=True)
class Fused:
    """A device's kernels. All sums are made in fp32."""

    two_products: Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor | None] | None = None
    """``a @ b.T + a2 @ b2.T`` (form "nt") or ``a @ b + a2 @ b2`` ("nn") of matrices, in a's dtype."""
    scaled_product: Callable[[Tensor, Tensor, Tensor, str], Tensor | None] | None = None
    """``a @ b.T`` (form "nt") or ``a @ b`` ("nn") in a's dtype, for ``b [out, in]`` of int8 numbers times fp32 scales
    ``[out]``, which are unpacked inside."""
    scaled_two_products: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str], Tensor | None] | None = None
    """As ``two_products``, with such a ``b``: a, numbers, scales, a2, b2."""
    thin: Callable[[Tensor, Tensor, float, str], Tensor | None] | None = None
    """``factor * x @ a.T`` (form "nt") or ``factor * x @ a`` ("nn") in x's dtype, for results of few columns."""
    rms_norm: Callable[[Tensor, Tensor | None, float], Tensor | None] | None = None
    """As ``Operations.rms_norm``."""
    rms_norm_gradient: Callable[[Tensor, Tensor | None, float, Tensor], Tensor | None] | None = None
    """The gradient of x from that of the result, in x's dtype; it serves what ``rms_norm`` does."""
    rms_norm_weight_gradient: Callable[[Tensor, float, Tensor], Tensor | None] | None = None
    """The gradient of the weight from that of the result, in fp32; it serves what ``rms_norm`` does."""
    softmax: Callable[[Tensor, Pattern, int | None, DType], Tensor | None] | None = None
    """Attention's weights in a dtype from fp32 scores ``[B, kv heads, group, T, T]``, masked by a pattern, 0 where
    nothing is seen; or from those of blocks of a band of positions, ``[B, kv heads, blocks, group, band, 2 * band]``,
    each against the keys of its own positions and of the band before them (``gemma4_core.ops.sliding_blocks``)."""
    softmax_gradient: Callable[[Tensor, Tensor, Pattern, int | None], Tensor | None] | None = None
    """The gradient of the scores from the weights and their gradient, in the weights' dtype; it serves what ``softmax``
    does."""
    cross_entropy: Callable[[Tensor, Tensor, float | None], Tensor | None] | None = None
    """From raw logits ``[n, V]``, which are capped here, and targets int32 ``[n]``: fp32 ``[n, 2]``, the losses, 0 for
    negative targets, and what the gradient needs beside them."""
    cross_entropy_gradient: Callable[[Tensor, Tensor, float | None, Tensor, Tensor], Tensor | None] | None = None
    """The gradient of the raw logits, in their dtype, from them, targets, cap, what ``cross_entropy`` gave, and the
    gradient of the losses, fp32 ``[n]``; it serves what ``cross_entropy`` does."""
    gated: Callable[[Tensor, Tensor], Tensor | None] | None = None
    """``gelu_tanh(gate) * up`` of a gated MLP."""
    gated_gradients: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None] | None = None
    """The gradients of gate and up from them and that of the result; it serves what ``gated`` does."""


NONE = Fused()
"""Of a device that brings none."""


def served(made: T | None) -> T:
    """The result of a kernel that was found to serve its inputs."""
    assert made is not None
    return made
