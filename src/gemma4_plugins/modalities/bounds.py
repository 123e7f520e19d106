"""Bounds of values in the towers: of clipped layers, and of the stream of the audio tower."""

from __future__ import annotations

from tinygrad import Tensor, dtypes

Bounds = tuple[Tensor, Tensor] | tuple[float, float]
"""The least and the largest value: scalar tensors of the values' dtype, or numbers."""


def clamp(x: Tensor, bounds: Bounds | None) -> Tensor:
    """``x`` between bounds, where there are any."""
    if bounds is None:
        return x
    # in fp32: most devices have no maximum of bf16 values, and what stands in for it rounds after each step
    low, high = (bound.cast(dtypes.float32) if isinstance(bound, Tensor) else bound for bound in bounds)
    return x.cast(dtypes.float32).maximum(low).minimum(high).cast(x.dtype)
