"""The inside of a gated MLP by a device's kernels, with its gradients."""

from __future__ import annotations

from tinygrad import Tensor, UOp, function

from gemma4_core.ops.fused import Fused, served
from gemma4_core.ops.multiply import by_argument


def gated(fused: Fused, gate: Tensor, up: Tensor) -> Tensor | None:
    """``gelu_tanh(gate) * up``, in memory; None where the device does not serve that."""
    forward, backward = fused.gated, fused.gated_gradients
    if forward is None or backward is None or forward(gate, up) is None:
        return None

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        to_gate, to_up = served(backward(gate, up, Tensor(seed).cast(gate.dtype).contiguous()))
        return by_argument(call, {gate.uop: to_gate, up.uop: to_up})

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(gate: Tensor, up: Tensor) -> Tensor:
        return served(forward(gate, up))

    gate, up = gate.contiguous(), up.contiguous()
    made: Tensor = run(gate, up)
    return made.contiguous()
