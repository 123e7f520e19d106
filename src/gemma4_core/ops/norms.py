"""Norms by a device's kernels, with gradients that are kernels too."""

from __future__ import annotations

from tinygrad import Tensor, UOp, function

from gemma4_core.ops.fused import Fused, served
from gemma4_core.ops.multiply import by_argument


def rms_norm(fused: Fused, x: Tensor, weight: Tensor | None, eps: float) -> Tensor | None:
    """As ``Operations.rms_norm``, in memory; None where the device does not serve that."""
    forward, to_x, to_weight = fused.rms_norm, fused.rms_norm_gradient, fused.rms_norm_weight_gradient
    if forward is None or to_x is None or to_weight is None or forward(x, weight, eps) is None:
        return None

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        dy = Tensor(seed).cast(x.dtype).contiguous()
        found = {x.uop: served(to_x(x, weight, eps, dy))}
        if weight is not None:
            found[weight.uop] = served(to_weight(x, eps, dy)).cast(weight.dtype).contiguous()
        return by_argument(call, found)

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(x: Tensor, weight: Tensor | None) -> Tensor:
        return served(forward(x, weight, eps))

    x = x.contiguous()
    found: Tensor = run(x, weight)
    return found.contiguous()
