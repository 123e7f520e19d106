"""Builds one kernel as UOps: parameters, loops, and memory that the threads of a group share.

tinygrad renders such a kernel for every GPU that it knows. It is lowered as written: no heuristics, no search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from tinygrad import Tensor, UOp, dtypes
from tinygrad.dtype import AddrSpace, DType
from tinygrad.uop.ops import AxisType, KernelInfo, Ops

SHARED_BYTES, MOST_THREADS = 32768, 1024
"""Limits on shared memory and threads of a group on every GPU: METAL's (tinygrad 0.14 ``renderer: shared_max``)."""
SUMMED_BY = 16
"""Threads that add up the values of all threads of a group, before each thread reads these sums."""


class DoesNotFit(Exception):
    """A kernel needs more shared memory or threads than every GPU has: the model is too wide for it."""


class Kernel:
    """A kernel of thread groups.

    Args:
        name: the same for equal kernels; all that the code depends on belongs in it, for readers of a profile.
        groups: the number of groups, or a function from the position to it.
        threads: of each group.
        start: the position, bound, for kernels that depend on it.
    """

    def __init__(
        self, name: str, groups: int | Callable[[UOp], int | UOp], threads: int, start: UOp | None = None
    ) -> None:
        self.name, self.threads = name, threads
        self.arguments: list[UOp] = []
        self.outputs: list[int] = []
        self.shared_bytes = 0
        self.axes, self.places = itertools.count(2), itertools.count()
        self.start, self.position = start, UOp.const(0)
        if start is not None:
            low, high = start.src[0].arg.vmin_vmax
            self.position = UOp.variable("start", low, high, dtypes.int, param=True).cast(dtypes.weakint)
        self.group = UOp.range(groups if isinstance(groups, int) else groups(self.position), 0, AxisType.GLOBAL)
        self.thread = UOp.range(threads, 1, AxisType.LOCAL)

    # ------------------------------------------------------------------------------------------- parameters

    def read(self, tensor: Tensor, dtype: DType | None = None) -> UOp:
        """A parameter: a tensor's memory as a flat array, reinterpreted as ``dtype`` where given."""
        dtype = dtype or tensor.dtype
        size = int(tensor.numel()) * tensor.dtype.itemsize // dtype.itemsize
        self.arguments.append(tensor.uop)
        return UOp.placeholder((size,), dtype, len(self.arguments) - 1)

    def write(self, tensor: Tensor, dtype: DType | None = None) -> UOp:
        """A parameter, as ``read`` gives it, that the kernel writes to."""
        self.outputs.append(len(self.arguments))
        return self.read(tensor, dtype)

    # ------------------------------------------------------------------------------------------- loops and memory

    def sum_over(self, count: int | UOp, terms: Callable[[UOp], Sequence[UOp]]) -> list[UOp]:
        """Sums of each term over ``0 … count - 1``, in one loop of a thread."""
        return self.fold(count, Ops.ADD, terms)

    def max_over(self, count: int | UOp, terms: Callable[[UOp], Sequence[UOp]]) -> list[UOp]:
        """The maximum of each term over ``0 … count - 1``."""
        return self.fold(count, Ops.MAX, terms)

    def fold(self, count: int | UOp, op: Ops, terms: Callable[[UOp], Sequence[UOp]]) -> list[UOp]:
        """Reduce each term over ``0 … count - 1`` with an operation, in one loop of a thread."""
        if once(count):
            return list(terms(UOp.const(0)))
        i = UOp.range(count, next(self.axes), AxisType.REDUCE)
        return [term.reduce(i, arg=op) for term in terms(i)]

    def each(self, count: int | UOp, stores: Callable[[UOp], Sequence[UOp]]) -> UOp:
        """A loop of a thread that runs stores for ``0 … count - 1``."""
        if once(count):
            return UOp.group(*stores(UOp.const(0)))
        i = UOp.range(count, next(self.axes), AxisType.LOOP)
        return UOp.group(*stores(i)).end(i)

    def spread(self, count: int, stores: Callable[[UOp, UOp], Sequence[UOp]]) -> UOp:
        """Stores for ``0 … count - 1``, distributed over the threads so that neighbouring threads have neighbouring
        indices. ``stores`` gets an index, always below ``count``, and whether this thread has to store it."""
        return self.each(-(-count // self.threads), lambda step: stores(*self.turn(step, count)))

    def turn(self, step: UOp, count: int) -> tuple[UOp, UOp]:
        """This thread's index of ``0 … count - 1`` in a step, and whether it has one; else an arbitrary valid index."""
        index = step * self.threads + self.thread
        if count % self.threads == 0:
            return index, UOp.const(True)
        return (index < count).where(index, 0), index < count

    def summed_over(self, count: int, terms: Callable[[UOp], Sequence[UOp]]) -> list[UOp]:
        """Sums over ``0 … count - 1``, computed by all threads together; every thread gets them."""

        def own(step: UOp) -> list[UOp]:
            index, mine = self.turn(step, count)
            return [mine.where(term, 0.0) for term in terms(index)]

        return self.gathered(self.sum_over(-(-count // self.threads), own), Ops.ADD)

    def shared(self, size: int, dtype: DType = dtypes.float) -> UOp:
        """Memory that the threads of a group share."""
        self.shared_bytes += size * dtype.itemsize
        return UOp.placeholder((size,), dtype, next(self.places), AddrSpace.LOCAL)

    def gathered(self, values: Sequence[UOp], op: Ops) -> list[UOp]:
        """Reduce each value over all threads of the group; every thread gets the results.

        In two steps: one thread that reads all values would take too long.
        """
        threads, numbered = self.threads, list(enumerate(values))
        by = next(n for n in range(min(SUMMED_BY, threads), 0, -1) if threads % n == 0)
        every, few = self.shared(len(values) * threads), self.shared(len(values) * by)
        every = every.after(UOp.group(*(every[n * threads + self.thread].store(v) for n, v in numbered)))
        mine = self.thread % by
        part = self.fold(threads // by, op, lambda i: [every[n * threads + i * by + mine] for n, _ in numbered])
        at = self.thread if by == threads else self.thread.valid(self.thread < by)
        few = few.after(UOp.group(*(few[n * by + at].store(v) for n, v in enumerate(part))))
        return [combined([few[n * by + i] for i in range(by)], op) for n, _ in numbered]

    # ------------------------------------------------------------------------------------------- what is run

    def run(self, *stores: UOp) -> list[Tensor]:
        """Call the kernel, which runs these stores. Returns the tensors that it writes, in order. Raises DoesNotFit."""
        if self.shared_bytes > SHARED_BYTES or self.threads > MOST_THREADS:
            raise DoesNotFit(f"{self.name}: {self.shared_bytes} bytes, {self.threads} threads")
        body = UOp.group(*stores).end(self.group, self.thread)
        sink = body.sink(arg=KernelInfo(self.name, opts_to_apply=()))
        bound = () if self.start is None else (self.start,)
        call = sink.call(*self.arguments, *bound)
        return [Tensor(self.arguments[slot].after(call)) for slot in self.outputs]


def once(count: int | UOp) -> bool:
    """Whether a loop runs exactly once: tinygrad would replace its range by a constant. Counts are never 0."""
    return (count if isinstance(count, int) else int(count.vmax)) == 1


def combined(values: Sequence[UOp], op: Ops = Ops.ADD) -> UOp:
    """Reduce values pairwise, to keep the chain of dependent operations short."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [pair[0].alu(op, pair[1]) if len(pair) > 1 else pair[0] for pair in pairs]
    return values[0]


def bounded(index: UOp, count: int, end: int) -> UOp:
    """An index below ``end``, clamped to ``count - 1``."""
    return index if end <= count else (index < count).where(index, count - 1)
