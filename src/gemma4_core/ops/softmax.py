"""Attention's softmax by a device's kernels, which mask scores themselves, with its gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinygrad import Tensor, UOp, function
from tinygrad.dtype import DType

from gemma4_core.ops.attention import Pattern
from gemma4_core.ops.fused import Fused, served
from gemma4_core.ops.multiply import by_argument


@dataclass(frozen=True)
class Masked:
    """Which scores count."""

    mask: Tensor | None
    """True where they do; None where all do."""
    pattern: Pattern | None = None
    """What the mask is made of, if it is."""
    band: int | None = None
    """Positions in a block, where queries and keys are cut into such."""


def softmax(fused: Fused, scores: Tensor, masked: Masked, dtype: DType) -> Tensor | None:
    """Weights in a dtype, in memory, from fp32 scores; None where the device does not serve that."""
    forward, backward, pattern = fused.softmax, fused.softmax_gradient, masked.pattern
    if forward is None or backward is None or pattern is None:
        return None
    scores = scores.contiguous()
    if forward(scores, pattern, masked.band, dtype) is None:
        return None

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        # in the weights' dtype, which the product that made the scores goes on with
        slope = served(backward(weights, Tensor(seed).cast(dtype).contiguous(), pattern, masked.band))
        return by_argument(call, {scores.uop: slope})

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(scores: Tensor, segments: Tensor | None, blocks: Tensor | None) -> Tensor:
        return served(forward(scores, replace(pattern, segments=segments, blocks=blocks), masked.band, dtype))

    made: Tensor = run(scores, pattern.segments, pattern.blocks)
    weights = made.contiguous()
    return weights
