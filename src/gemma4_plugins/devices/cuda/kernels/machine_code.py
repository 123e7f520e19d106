"""tinygrad's CUDA kernels as machine code: tinygrad 0.14 compiles to PTX, which the driver compiles once more, one kernel
after the other, when it is loaded."""

from __future__ import annotations

from typing import Any

from tinygrad import Device
from tinygrad.helpers import Target
from tinygrad.renderer.cstyle import CUDARenderer as PTXSourceRenderer


class CUDARenderer(PTXSourceRenderer):
    """tinygrad's renderer with a compiler that gives machine code; its class's name is what ``DEV`` chooses by."""

    def __init__(self, target: Target) -> None:
        from tinygrad.runtime.support.compiler_cuda import NVRTCCompiler

        super().__init__(target)
        held: Any = self
        if type(held.compiler) is NVRTCCompiler:
            held.compiler = NVRTCCompiler(target.arch, ptx=False, cache_key="cuda_machine_code")


def use_machine_code(device: str) -> None:
    """Let a CUDA device compile to machine code."""
    opened: Any = Device[device]
    opened.renderers = [CUDARenderer if kind is PTXSourceRenderer else kind for kind in opened.renderers]
