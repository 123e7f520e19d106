"""A device's products of matrices, with gradients that are such products again."""

from __future__ import annotations

from collections.abc import Callable

from tinygrad import Tensor, UOp, function

from gemma4_core.ops.products import product

Multiply = Callable[[Tensor, Tensor, str, bool], "Tensor | None"]
"""``Operations.matmul``."""


def multiplied(
    matmul: Multiply | None, a: Tensor, b: Tensor, form: str, wide: bool = False,
    again: Callable[[], Tensor] | None = None,
) -> Tensor | None:
    """``a @ b.T`` (form "nt") or ``a @ b`` ("nn") by the device, differentiable; None where it does not serve that.

    ``a [..., group, M, K]``, or ``[M, K]``, and ``b [..., N, K]`` or ``[..., K, N]``: ``[..., group, M, N]`` in a's
    dtype, or in fp32 if ``wide``. Operands, result and gradients are in memory; ``again`` makes b for a's gradient,
    where it is not to be kept until then.
    """
    if matmul is None or matmul(a, b, form, wide) is None:
        return None

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        out = Tensor(seed).cast(a.dtype).contiguous()
        to_a = made(matmul, out, b if again is None else again(), "nn" if form == "nt" else "nt")
        many, once = (out, a) if form == "nt" else (a, out)
        if a.ndim > b.ndim:  # [..., group, M, ·] -> [..., group * M, ·]: so that the sum goes on over the group
            many, once = (x.reshape(*x.shape[:-3], -1, x.shape[-1]) for x in (many, once))
        to_b = made(matmul, many, once, "tn")
        return by_argument(call, {a.uop: to_a.cast(a.dtype).contiguous(), b.uop: to_b.cast(b.dtype).contiguous()})

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(a: Tensor, b: Tensor) -> Tensor:
        return made(matmul, a, b, form, wide)

    a, b = a.contiguous(), b.contiguous()
    return run(a, b)


def made(matmul: Multiply | None, a: Tensor, b: Tensor, form: str, wide: bool = False) -> Tensor:
    """A product by the device, or by tinygrad where that has none or does not serve it."""
    own = None if matmul is None else matmul(a, b, form, wide)
    if own is not None:
        return own
    shared = b if b.ndim == a.ndim else b.unsqueeze(-3)
    left = a.transpose(-1, -2) if form == "tn" else a
    right = shared.transpose(-1, -2) if form == "nt" else shared
    found = product(left, right)
    return found if wide else found.cast(a.dtype)


def by_argument(call: UOp, found: dict[UOp, Tensor]) -> tuple[UOp | None, ...]:
    """What a function's gradient gives: one for each argument, hidden ones included."""
    return tuple(found[arg].uop if arg in found else None for arg in call.src[1:])
