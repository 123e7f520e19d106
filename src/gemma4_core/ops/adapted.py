"""Products of adapted matrices, ``y = x W' + scale * (d(x) A') B'``, with gradients: of ``x`` in its dtype, of A and B
in fp32, of W none. ``d`` is the change's dropout, if it has one and training is under way."""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, UOp, function
from tinygrad.dtype import DType

from gemma4_core.ops.frozen import Frozen
from gemma4_core.ops.fused import Fused
from gemma4_core.ops.multiply import Multiply, by_argument, made
from gemma4_core.weights import LowRankChange

RANKS = 16
"""Kernels take ranks that are multiples of it; zeros fill others up."""


@dataclass(frozen=True, eq=False)
class ChangeAtWork:
    """A low-rank change in the dtype that products are made in, over a device's products and kernels."""

    change: LowRankChange
    a: Tensor
    """``[R, in]``."""
    b: Tensor
    """``[out, R]``."""
    matmul: Multiply | None
    fused: Fused

    @classmethod
    def of(cls, change: LowRankChange, dtype: DType, matmul: Multiply | None, fused: Fused) -> ChangeAtWork:
        fill = -int(change.a.shape[0]) % RANKS if fused.thin or fused.two_products else 0
        a, b = change.a.pad(((0, fill), None)), change.b.pad((None, (0, fill)))
        return cls(change, a.cast(dtype).contiguous(), b.cast(dtype).contiguous(), matmul, fused)

    @property
    def drops(self) -> bool:
        """Whether numbers of the change's input are dropped now."""
        return self.change.dropout is not None and self.change.dropout.drops

    def dropped(self, x: Tensor) -> Tensor:
        """The change's input, or the gradient that goes back to it."""
        return x if self.change.dropout is None else self.change.dropout(x)

    def inner(self, x: Tensor) -> Tensor:
        """``scale * x A'``: ``[n, in]`` to ``[n, R]``."""
        return self._scaled(x, self.a, "nt")

    def inner_gradient(self, dy: Tensor) -> Tensor:
        """The gradient of ``x A'``: ``dy [n, out]`` to ``[n, R]``."""
        return self._scaled(dy, self.b, "nn")

    def _scaled(self, x: Tensor, factor: Tensor, form: str) -> Tensor:
        found = None if self.fused.thin is None else self.fused.thin(x, factor, self.change.scale, form)
        if found is None:
            found = (made(self.matmul, x, factor, form, wide=True) * self.change.scale).cast(x.dtype).contiguous()
        return found

    def gradients(self, x: Tensor, u: Tensor, dy: Tensor, du: Tensor) -> dict[UOp, Tensor]:
        """Those of A and B, by the node they are of, from ``u = inner(x)`` and ``inner_gradient(dy)``."""
        rank = int(self.change.a.shape[0])
        to_a = made(self.matmul, du, x, "tn", wide=True)[:rank]
        to_b = made(self.matmul, dy, u, "tn", wide=True)[:, :rank]
        return {self.change.a.uop: to_a.cast(self.change.a.dtype).contiguous(),
                self.change.b.uop: to_b.cast(self.change.b.dtype).contiguous()}


def adapted(x: Tensor, base: Frozen, change: LowRankChange) -> Tensor | None:
    """Rows ``x [n, in]``, in memory, through a matrix and a change beside it, in one product forward and one backward:
    ``[n, out]``. None where the device does not serve that."""
    if base.fused.two_products is None:
        return None
    work = ChangeAtWork.of(change, x.dtype, base.matmul, base.fused)
    given = work.dropped(x)
    u = work.inner(given)
    if base.both(x, u, work.b, "nt") is None:
        return None

    def both(x: Tensor, x2: Tensor, w2: Tensor, form: str) -> Tensor:
        found = base.both(x, x2, w2, form)
        if found is None:
            found = (base.product(x, form).contiguous() + made(base.matmul, x2, w2, form).contiguous()).contiguous()
        return found

    def to_x(dy: Tensor, du: Tensor) -> Tensor:
        if not work.drops:
            return both(dy, du, work.a, "nn")
        change = work.dropped(made(base.matmul, du, work.a, "nn").contiguous())
        return (base.product(dy, "nn").contiguous() + change).contiguous()

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        dy = Tensor(seed).cast(x.dtype).contiguous()
        du = work.inner_gradient(dy)
        return by_argument(call, {x.uop: to_x(dy, du)} | work.gradients(given, u, dy, du))

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(x: Tensor, u: Tensor, b: Tensor, a_trained: Tensor, b_trained: Tensor) -> Tensor:
        return both(x, u, b, "nt")

    found: Tensor = run(x, u, work.b, change.a, change.b)
    return found.contiguous()


def change_alone(x: Tensor, change: LowRankChange, matmul: Multiply | None, fused: Fused) -> Tensor:
    """What a change gives for rows ``x [n, in]``, in memory: fp32 ``[n, out]``."""
    work = ChangeAtWork.of(change, x.dtype, matmul, fused)
    given = work.dropped(x)
    u = work.inner(given)

    def gradient(seed: UOp, call: UOp) -> tuple[UOp | None, ...]:
        dy = Tensor(seed).cast(x.dtype).contiguous()
        du = work.inner_gradient(dy)
        to_x = work.dropped(made(matmul, du, work.a, "nn").contiguous())
        return by_argument(call, {x.uop: to_x} | work.gradients(given, u, dy, du))

    @function(grad_fxn=gradient, allow_implicit=True)
    def run(x: Tensor, u: Tensor, b: Tensor, a_trained: Tensor, b_trained: Tensor) -> Tensor:
        return made(matmul, u, b, "nt", wide=True)

    found: Tensor = run(x, u, work.b, change.a, change.b)
    return found.contiguous()
