"""Kernels that a device brings for training: several operations in one, forward or backward.

None of them is differentiable itself: ``gemma4_core.ops.differentiable`` puts them together with their gradients. Each
gives None for what it does not serve, and then the portable form runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinygrad import Tensor


@dataclass(frozen=True)
class Fused:
    """A device's kernels. All sums are made in fp32."""

    two_products: Callable[[Tensor, Tensor, Tensor, Tensor, str], Tensor | None] | None = None
    """``a @ b.T + a2 @ b2.T`` (form "nt") or ``a @ b + a2 @ b2`` ("nn") of matrices, in a's dtype."""
    thin: Callable[[Tensor, Tensor, float, str], Tensor | None] | None = None
    """``factor * x @ a.T`` (form "nt") or ``factor * x @ a`` ("nn") in x's dtype, for results of few columns."""
    rms_norm: Callable[[Tensor, Tensor | None, float], Tensor | None] | None = None
    """As ``Operations.rms_norm``."""
    rms_norm_gradient: Callable[[Tensor, Tensor | None, float, Tensor], Tensor | None] | None = None
    """The gradient of x from that of the result, in x's dtype; it serves what ``rms_norm`` does."""
    rms_norm_weight_gradient: Callable[[Tensor, float, Tensor], Tensor | None] | None = None
    """The gradient of the weight from that of the result, in fp32; it serves what ``rms_norm`` does."""


NONE = Fused()
"""Of a device that brings none."""
