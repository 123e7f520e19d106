"""Cross entropy by a device's kernels: losses in one look at the logits, their gradient in another."""

from __future__ import annotations

from tinygrad import Tensor, UOp, dtypes, function

from gemma4_core.ops.fused import Fused, served
from gemma4_core.ops.multiply import by_argument


def losses(fused: Fused, raw: Tensor, targets: Tensor, cap: float | None) -> Tensor | None:
    """Losses fp32 ``[n]`` of raw logits ``[n, V]``, in memory; None where the device does not serve that."""
    forward, backward = fused.cross_entropy, fused.cross_entropy_gradient
    if forward is None or backward is None or forward(raw, targets, cap) is None:
        return None

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        # [n, 2] -> [n]: what stands beside the losses has no gradient
        slopes = Tensor(seed)[:, 0].cast(dtypes.float32).contiguous()
        return by_argument(call, {raw.uop: served(backward(raw, targets, cap, found, slopes))})

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(raw: Tensor, targets: Tensor) -> Tensor:
        return served(forward(raw, targets, cap))

    raw, targets = raw.contiguous(), targets.contiguous()
    made: Tensor = run(raw, targets)
    found = made.contiguous()
    return found[:, 0]
