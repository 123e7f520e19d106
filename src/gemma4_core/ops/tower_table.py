"""The table of operations that vision and audio towers run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinygrad import Tensor

from gemma4_core.weights import Matrix

Bounds = tuple[Tensor, Tensor] | tuple[float, float]
"""The least and the largest value: scalar tensors of the values' dtype, or numbers."""
Rotation = tuple[Tensor, Tensor]
"""cos and sin ``[N, 2, D / 4]`` in fp32, of a patch's column and of its row."""


@dataclass(frozen=True)
class TowerOperations:
    """One function per operation. N rows, D head size. A function that cannot serve a call (another dtype, an odd
    size) passes it on to the portable form."""

    name: str
    linear: Callable[[Tensor, Matrix], Tensor]
    """``x [N, in]`` times ``matrix [out, in]`` transposed: ``[N, out]`` in x's dtype, accumulated in fp32."""
    attention: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """``q [N, heads, D]``, ``k, v [N, kv heads, D]``, ``real`` bool ``[N]``: every row attends to all real ones, scale
    1, softmax in fp32: ``[N, heads * D]``. The portable form also takes ``real [media, N / media]``, where rows attend
    to those of their own medium."""
    norm: Callable[..., Tensor]
    """``(x [N, width], weight [width], eps, bounds=None, added=None)``: root-mean-square norm in fp32 of x within its
    bounds, plus ``added [N, width]`` where given: ``[N, width]`` in x's dtype."""
    heads: Callable[[Tensor, int, Tensor | None, float, Bounds | None, Rotation | None], Tensor]
    """``x [N, heads * D]``, D, norm weight ``[D]``, eps, bounds, rotation: heads of x within its bounds, each
    normalised for itself and rotated where a rotation is given: ``[N, heads, D]``."""
    gated: Callable[[Tensor, Tensor, Bounds | None, Bounds | None, Bounds | None], Tensor]
    """``gelu_tanh(gate) * up``, each ``[N, width]``; bounds of gate, of up and of the result."""
    silu: Callable[[Tensor, Bounds | None, Bounds | None], Tensor]
    """``x * sigmoid(x)`` in fp32; bounds of x and of the result."""
    bounded: Callable[[Tensor, Bounds | None], Tensor]
    """``x`` within its bounds, as operand of a product."""
