"""Linked calls as one replay, in memory that all replays of a device share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tinygrad import Device, Tensor, UOp, dtypes
from tinygrad.device import Buffer
from tinygrad.dtype import DType
from tinygrad.engine.jit import graph_split_rewrite
from tinygrad.engine.realize import ExecContext, link_linear, pm_exec, run_linear
from tinygrad.helpers import JIT_BATCH_SIZE
from tinygrad.runtime.support.memory import TLSFAllocator
from tinygrad.uop import Ops

ALIGNED = 256
"""Bytes that places in an arena are multiples of."""
WITHOUT_VIEWS = ("WEBGPU", "CL")
"""Devices where tinygrad 0.14 cannot use a part of a buffer as a buffer (``UOp.contiguous_view``)."""


class Arena:
    """Memory that replays use one after the other: as much as the largest of them needs."""

    def __init__(self, device: str) -> None:
        self.device, self.size = device, 0
        self._buffer: Buffer | None = None

    def buffer(self, size: int) -> Buffer:
        """Memory of at least this size. A larger one than before takes the place of what there was."""
        if self._buffer is None or size > self.size:
            self._buffer, self.size = Buffer(self.device, size, dtypes.uint8), size
        return self._buffer


class Replay:
    """Compiled calls, run in order by each call of this object. ``own`` are the buffers that nobody else knows: they
    share memory where their lifetimes allow it."""

    def __init__(self, calls: Sequence[UOp], own: Iterable[UOp], arena: Arena) -> None:
        self.calls, self.arena = calls, arena
        self.kernels = len(calls)
        self.places, self.size = planned(calls, set(own)) if views(arena.device) else ({}, 0)
        self._linear: UOp | None = None
        self._buffer: Buffer | None = None

    def __call__(self) -> None:
        buffer = self.arena.buffer(self.size) if self.size else None
        if self._linear is None or buffer is not self._buffer:
            self._linear, self._buffer = self._linked(buffer), buffer
        run_linear(self._linear, jit=True)

    def timed(self) -> Iterator[tuple[UOp, float]]:
        """Run call after call, each with the seconds that the device took, for profiles."""
        for call in self._placed(self._buffer):
            yield call, max(float(t or 0.0) for t in pm_exec.rewrite(call, ExecContext(jit=True, wait=True)) or [0.0])

    def _linked(self, buffer: Buffer | None) -> UOp:
        """What runs; devices that replay graphs get one."""
        calls = tuple(self._placed(buffer))
        return link_linear(graph_split_rewrite(UOp(Ops.LINEAR, src=calls), max_batch_size=JIT_BATCH_SIZE.value))

    def _placed(self, buffer: Buffer | None) -> list[UOp]:
        """The calls over places in the arena."""
        placed: dict[tuple[int, int, DType], UOp] = {}
        found: dict[UOp, UOp] = {}
        for uop, offset in self.places.items():
            assert buffer is not None
            place = offset, uop.max_numel(), uop.dtype
            if place not in placed:
                placed[place] = view(buffer, *place)
            found[uop] = placed[place]
        return [call.replace(src=(call.src[0], *(found.get(b, b) for b in call.src[1:]))) for call in self.calls]


def moved(bound: Sequence[tuple[Tensor, UOp]]) -> bool:
    """Whether a tensor lies in another buffer than the one it was linked with. What was assigned is written first."""
    if written := [tensor for tensor, _ in bound if tensor.uop.base.op is Ops.AFTER]:
        Tensor.realize(*written)
    return any(tensor.uop.base is not base for tensor, base in bound)


def views(device: str) -> bool:
    """Whether a part of a buffer can be used as a buffer there."""
    return not device.startswith(WITHOUT_VIEWS) and hasattr(Device[device].allocator, "_offset")


def view(buffer: Buffer, offset: int, size: int, dtype: DType) -> UOp:
    """``size`` numbers of a buffer from a byte on."""
    return UOp.from_buffer(buffer.view(size, dtype, offset))


def planned(calls: Sequence[UOp], own: set[UOp]) -> tuple[dict[UOp, int], int]:
    """Where each of ``own`` lies in an arena, in bytes, and the arena's size."""
    first: dict[UOp, int] = {}
    last: dict[UOp, int] = {}
    for index, call in enumerate(calls):
        for buffer in call.src[1:]:
            if buffer in own:
                first.setdefault(buffer, index)
                last[buffer] = index
    sizes = {b: -(-b.max_numel() * b.dtype.itemsize // ALIGNED) * ALIGNED for b in first}
    begin: dict[int, list[UOp]] = {}
    end: dict[int, list[UOp]] = {}
    for buffer in first:
        begin.setdefault(first[buffer], []).append(buffer)
        end.setdefault(last[buffer], []).append(buffer)
    allocator = TLSFAllocator(max(2 * sum(sizes.values()), ALIGNED), block_size=ALIGNED, lv2_cnt=32)
    places: dict[UOp, int] = {}
    peak = 0
    for index in range(len(calls)):
        for buffer in begin.get(index, ()):
            places[buffer] = allocator.alloc(sizes[buffer])
            peak = max(peak, places[buffer] + sizes[buffer])
        for buffer in end.get(index, ()):
            allocator.free(places[buffer])
    return places, peak
