"""The residual stream between two products: normalise and add the result of one, and make the operand of the next.

Every thread group does this for itself, since that is cheaper than a separate kernel; the first group stores the new
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinygrad import Tensor, UOp, dtypes

from gemma4_plugins.devices.uops.packing import PACKINGS
from gemma4_plugins.devices.uops.product import Layout
from gemma4_plugins.devices.uops.writing import Kernel, combined


@dataclass(frozen=True)
class Stream:
    """fp32 ``h [H]``, and the results still to be added to it before it is read."""

    h: Tensor
    results: Sequence[tuple[Tensor, Tensor]] = field(default=())
    """Results fp32 ``[H]``, each with the weight of its norm; their sum is added."""
    after: Tensor | None = None
    """The weight of a norm of that sum."""
    scalar: Tensor | None = None
    """``[1]``: a factor on the new stream."""

    @property
    def size(self) -> int:
        return int(self.h.numel())


class Vector:
    """A small tensor, such as norm weights, in a kernel: its numbers as fp32."""

    def __init__(self, kernel: Kernel, tensor: Tensor) -> None:
        self.packing = PACKINGS[tensor.dtype]
        self.whole = int(tensor.numel()) % self.packing.count == 0
        self.memory = kernel.read(tensor, self.packing.word if self.whole else None)

    def __getitem__(self, index: UOp | int) -> UOp:
        index = UOp.const(index) if isinstance(index, int) else index
        return self.packing.number(self.memory, index) if self.whole else self.memory[index].cast(dtypes.float)


def inverse_rms(squares: UOp, size: int, eps: float) -> UOp:
    """The factor of a norm, from the sum of squares."""
    return (squares * (1.0 / size) + eps).rsqrt()


class Operand:
    """The operand of a product of the stream, in memory that a kernel's threads share.

    Args:
        norm: the weight of the norm before the product; None for the stream as it is.
        layout: the layout that the product expects.
        factor: a number to multiply it with.
    """

    def __init__(
        self, kernel: Kernel, stream: Stream, norm: Tensor | None, eps: float, layout: Layout, factor: float = 1.0
    ) -> None:
        self.layout = layout
        size = stream.size
        h = kernel.read(stream.h)
        results = [(kernel.read(y), Vector(kernel, weight)) for y, weight in stream.results]
        after = None if stream.after is None else Vector(kernel, stream.after)
        scalar = None if stream.scalar is None else Vector(kernel, stream.scalar)[0]
        weight = None if norm is None else Vector(kernel, norm)

        def inverse_rms_of(values: Callable[[UOp], list[UOp]]) -> list[UOp]:
            squares = kernel.summed_over(size, lambda i: [v * v for v in values(i)])
            return [inverse_rms(s, size, eps) for s in squares]

        scales = inverse_rms_of(lambda i: [y[i] for y, _ in results]) if results else []

        def added(i: UOp) -> UOp:
            return combined([y[i] * w[i] * s for (y, w), s in zip(results, scales, strict=True)])

        whole = inverse_rms_of(lambda i: [added(i)])[0] if after is not None else None

        def renewed(i: UOp) -> UOp:
            value = h[i]
            if results:
                value = value + (added(i) if after is None or whole is None else added(i) * after[i] * whole)
            return value if scalar is None else value * scalar

        inverse = inverse_rms_of(lambda i: [renewed(i)])[0] if weight is not None else None
        self.stream = stream.h
        """The new stream."""
        out = None
        if results or scalar is not None:
            self.stream = Tensor.empty(size, dtype=dtypes.float32, device=stream.h.device)
            out = kernel.write(self.stream)
        memory = kernel.shared(size)

        def stores(i: UOp, mine: UOp) -> list[UOp]:
            value = renewed(i)
            x = value if weight is None or inverse is None else value * (inverse * factor) * weight[i]
            found = [memory[layout.place(i).valid(mine)].store(x)]
            if out is not None:
                found.append(out[i.valid(mine & kernel.group.eq(0))].store(value))
            return found

        self.memory = memory.after(kernel.spread(size, stores))

    def numbers(self, chunk: UOp) -> list[UOp]:
        """The numbers to multiply with vector ``chunk`` of a row."""
        return self.layout.numbers(self.memory, chunk)
