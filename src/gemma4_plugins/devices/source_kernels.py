"""Launches kernels in source form as operations on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.dtype import AddrSpace, DType
from tinygrad.renderer import Estimates
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo, UOp

from gemma4_core.ops.late import LateBinary


def launch(
    name: str, source: str, out: tuple[tuple[int, ...], DType], inputs: Sequence[Tensor], target: Any,
    grid: tuple[int, int, int], block: tuple[int, int, int] = (1, 1, 1), parts: int = 0, operations: int = 0,
    binary: bytes | LateBinary | None = None,
) -> Tensor:
    """The output of the function ``name`` of a source, whose first argument it is; the inputs follow.

    Args:
        out: shape and dtype.
        target: the device's, looked up before anything is captured.
        grid: groups, and ``block`` threads in each.
        parts: on processors: a last argument ``core_id`` counts the parts that a kernel is called in.
        operations: arithmetic operations of a call, for statistics.
        binary: the source as compiled; without it tinygrad compiles it.
    """
    shape, dtype = out

    def program(*buffers: UOp) -> UOp:
        slots = tuple(range(len(buffers)))
        scalars: tuple[UOp, ...] = ()
        if parts:
            scalars = (UOp.param(len(buffers), dtypes.int, (), vmin_vmax=(0, parts - 1), name="core_id",
                                 addrspace=AddrSpace.ALU),)
        work = Estimates(ops=operations, mem=sum(int(x.nbytes()) for x in inputs))
        sink = UOp.sink(*(buffer.base for buffer in buffers), *scalars, arg=KernelInfo(name, estimates=work))
        info = ProgramInfo(name, grid, block, scalars, slots, (0,), slots[1:], target)
        linear = UOp(Ops.LINEAR, src=(*sink.src, sink))
        compiled = () if binary is None else (UOp(Ops.BINARY, arg=binary),)
        return UOp(Ops.PROGRAM, src=(sink, linear, UOp(Ops.SOURCE, arg=source), *compiled), arg=info)

    empty = Tensor.empty(*shape, dtype=dtype, device=inputs[0].device)
    return empty.custom_kernel(*map(in_memory, inputs), fxn=program)[0]


def in_memory(x: Tensor) -> Tensor:
    """The same values in the same order in memory, in whatever shape: for a reshaped result tinygrad would copy it."""
    return Tensor(beneath(x)).contiguous()


def beneath(x: Tensor) -> UOp:
    """What has ``x``'s values in their order, without what only names another shape: AFTER a kernel where they are its
    result."""
    uop = _unshaped(x.uop)
    if uop.op is Ops.CONTIGUOUS and (made := _unshaped(uop.src[0])).op is Ops.AFTER:
        return made
    return uop


def _unshaped(uop: UOp) -> UOp:
    while uop.op is Ops.RESHAPE:
        uop = uop.src[0]
    return uop
