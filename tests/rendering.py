"""Renders what a model runs for GPUs that are not there.

tinygrad's NULL device schedules and lowers and executes nothing. It is given the renderer of another backend, made
without that backend's compiler (which only exists beside its driver).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tinygrad import Device
from tinygrad.codegen import do_to_program
from tinygrad.codegen.opt import tc
from tinygrad.device import Compiler
from tinygrad.dtype import AddrSpace
from tinygrad.engine import realize
from tinygrad.helpers import Context, Target
from tinygrad.renderer import Renderer
from tinygrad.renderer.cstyle import CUDARenderer, HIPRenderer, MetalRenderer, pm_manual_bf16_cast
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo, UOp

from gemma4_core.contracts import DeviceBackend
from gemma4_core.hookspecs import hookimpl

TARGETS = {
    "METAL": (MetalRenderer, Target("METAL", "METAL", "Apple9"), tc.metal),
    "CUDA": (CUDARenderer, Target("CUDA", "CUDA", "sm_90"), tc.get_cuda("sm_90")),
    "AMD": (HIPRenderer, Target("AMD", "HIP", "gfx1100"), tc.get_amd("gfx1100")),
}
"""Renderer, target and tensor cores."""
FEWEST_BUFFERS = 31
"""Buffers that a kernel may have on METAL; others allow more (tinygrad 0.14 ``schedule/rangeify.py``)."""


class NullPlugin:
    """Offers tinygrad's NULL device by its name."""

    __name__ = "null"

    @hookimpl
    def gemma4_devices(self) -> list[DeviceBackend]:
        return [DeviceBackend("null", "executes nothing", "NULL", lambda: None, matches=lambda context: False)]


def render_for(name: str) -> Renderer:
    """A renderer of this backend without its compiler."""
    cls, target, tensor_cores = TARGETS[name]

    class RenderOnly(cls):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            Renderer.__init__(self, target)
            self.compiler, self.tensor_cores = Compiler(), list(tensor_cores)
            if name == "AMD":
                self.extra_matcher = HIPRenderer.extra_matcher + pm_manual_bf16_cast

    return RenderOnly()


@contextmanager
def recording() -> Iterator[list[UOp]]:
    """Let the NULL device schedule as for a GPU, and take every kernel once as it was scheduled."""
    kernels: dict[bytes, UOp] = {}
    found: list[UOp] = []
    renderer, device, lower = render_for("METAL"), Device["NULL"], realize.to_program

    def to_program(kernel: UOp, renderer: Renderer) -> UOp:
        if kernel.op is not Ops.SINK:
            return lower(kernel, renderer)
        if kernel.key not in kernels:
            kernels[kernel.key] = kernel
            found.append(kernel)
        variables = tuple(u for u in kernel.toposort() if u.op is Ops.PARAM and u.addrspace is AddrSpace.ALU)
        buffers = tuple(sorted(u.arg.slot for u in kernel.toposort() if u.op is Ops.PARAM and u not in variables))
        info = ProgramInfo("stub", (1, 1, 1), (1, 1, 1), tuple(dict.fromkeys(variables)), buffers)
        parts = (UOp(Ops.LINEAR), UOp(Ops.SOURCE, arg=""), UOp(Ops.BINARY, arg=b""))
        return UOp(Ops.PROGRAM, src=(UOp(Ops.SINK, arg=KernelInfo("stub")), *parts), arg=info)

    known = dict(realize.to_program_cache)
    device._select_renderer = lambda: renderer  # type: ignore[method-assign]
    realize.to_program = to_program
    try:
        with Context(PARALLEL=0, NULL_ALLOW_COPYOUT=1, MAX_KERNEL_BUFFERS=FEWEST_BUFFERS, BEAM=0):
            yield found
    finally:
        realize.to_program = lower
        realize.to_program_cache.clear()  # the stubs
        realize.to_program_cache.update(known)
        del device._select_renderer


def source(kernel: UOp, renderer: Renderer) -> str:
    """The source of a kernel, lowered with tinygrad's heuristics or the kernel's own options."""
    with Context(BEAM=0):
        program = do_to_program(kernel, renderer)
    return str(next(part.arg for part in program.src if part.op is Ops.SOURCE))
