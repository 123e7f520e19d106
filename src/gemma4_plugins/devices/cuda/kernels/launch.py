"""Compiling kernel source with tinygrad's compiler and launching it through the driver, past tinygrad's scheduler.

A launch that tinygrad schedules costs its host about 80 microseconds; a decode step is one launch whose arguments are
addresses and numbers, so it goes straight to the driver, on the stream that tinygrad's own kernels use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from tinygrad import Device, Tensor

DEVICE = "CUDA"
PORTABLE_MAPPED = 3
"""Flags of page-locked host memory that kernels write to."""


@cache
def driver() -> tuple[Any, Callable[[int], None]]:
    """tinygrad's bindings of the driver, and its check of their results, which raises RuntimeError."""
    from tinygrad.runtime.autogen import cuda
    from tinygrad.runtime.ops_cuda import check

    return cuda, check


def device() -> Any:
    """tinygrad's CUDA device, its context current in this thread."""
    cuda, check = driver()
    opened = Device[DEVICE]
    check(cuda.cuCtxSetCurrent(opened.context))
    return opened


def attribute(name: str) -> int:
    """A device attribute by the end of its driver name, such as ``MULTIPROCESSOR_COUNT``."""
    cuda, check = driver()
    value = ctypes.c_int()
    which = getattr(cuda, f"CU_DEVICE_ATTRIBUTE_{name}")
    check(cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device().cu_device))
    return value.value


def address(tensor: Tensor) -> int:
    """Where a realized tensor lies in device memory."""
    return int(tensor.uop.buffer.ensure_allocated()._buf.value)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a whole realized buffer of this device."""
    return str(tensor.device) == DEVICE and tensor.uop.has_buffer_identity() and tensor.uop.is_realized


def features() -> str:
    """What a kernel's architecture may be extended by on this device: Hopper moves registers between warps with ``a``."""
    return "a" if attribute("COMPUTE_CAPABILITY_MAJOR") == 9 else ""


@cache
def compiler(features: str) -> Any:
    """A compiler of CUDA C++ to machine code for this device, kept in tinygrad's cache on disk: nvcc where tinygrad uses
    it, else NVRTC. ``features`` extends the architecture's name, ``a`` of sm_90a."""
    from tinygrad.runtime.support.compiler_cuda import NVCCCompiler, NVRTCCompiler

    opened = device()
    kind = NVCCCompiler if isinstance(opened.compiler, NVCCCompiler) else NVRTCCompiler
    return kind(f"{opened.arch}{features}", ptx=False, cache_key="gemma4_cuda")


class Kernel:
    """A compiled kernel with its dynamic shared memory. ``features`` extends the architecture's name, ``a`` of sm_90a."""

    def __init__(
        self, source: str, name: str, threads: int, shared_bytes: int = 0, features: str = ""
    ) -> None:  # fmt: skip
        from tinygrad.device import TinyELF
        from tinygrad.runtime.ops_cuda import CUDAProgram

        opened = device()
        library = compiler(features).compile_cached(source)
        elf = TinyELF(library, name, opened.renderer.target, ())
        self.threads, self.shared_bytes = threads, shared_bytes
        self.program = CUDAProgram(opened, elf, shared_bytes)
        self.function, self.context = self.program.prg, opened.context

    def resident_blocks(self) -> int:
        """Blocks that one multiprocessor holds at a time."""
        cuda, check = driver()
        count = ctypes.c_int()
        size = ctypes.c_size_t(self.shared_bytes)
        device()
        ask = cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor
        check(ask(ctypes.byref(count), self.function, self.threads, size))
        return count.value

    def launch(
        self, width: int, arguments: Sequence[ctypes._SimpleCData[Any]], height: int = 1, depth: int = 1
    ) -> None:  # fmt: skip
        """Queue a grid of blocks; arguments are ctypes values of the parameters' sizes."""
        cuda, check = driver()
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        check(cuda.cuCtxSetCurrent(self.context))
        check(
            cuda.cuLaunchKernel(
                self.function, width, height, depth, self.threads, 1, 1, self.shared_bytes, None,
                ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p)), None,
            )
        )  # fmt: skip


class Sibling(Kernel):
    """Another kernel of a module that is loaded already."""

    def __init__(self, first: Kernel, name: str, threads: int, shared_bytes: int) -> None:
        cuda, check = driver()
        self.program, self.context, self.threads, self.shared_bytes = (
            first.program,
            first.context,
            threads,
            shared_bytes,
        )
        self.function = cuda.CUfunction()
        device()
        check(cuda.cuModuleGetFunction(ctypes.byref(self.function), self.program.module, name.encode()))
        attribute_name = cuda.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        check(cuda.cuFuncSetAttribute(self.function, attribute_name, shared_bytes))


def kernels(source: str, wanted: Mapping[str, tuple[int, int]], features: str = "") -> dict[str, Kernel]:
    """Several kernels of one source by name, each with its threads and shared memory."""
    names = list(wanted)
    first = Kernel(source, names[0], *wanted[names[0]], features)
    return {names[0]: first} | {name: Sibling(first, name, *wanted[name]) for name in names[1:]}


class HostBuffer:
    """Zeroed page-locked memory that the device writes to while the host reads it."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        cuda, check = driver()
        device()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._memory = ctypes.c_void_p()
        check(cuda.cuMemHostAlloc(ctypes.byref(self._memory), size, PORTABLE_MAPPED))
        place = ctypes.c_uint64()
        pointer = ctypes.cast(ctypes.byref(place), ctypes.POINTER(cuda.CUdeviceptr))
        check(cuda.cuMemHostGetDevicePointer_v2(pointer, self._memory, 0))
        self.address = int(place.value)
        ctypes.memset(self._memory, 0, size)
        held = (ctypes.c_uint8 * size).from_address(int(self._memory.value or 0))
        self.array = np.ctypeslib.as_array(held).view(dtype).reshape(shape)

    def __del__(self) -> None:
        if getattr(self, "_memory", None):
            driver()[0].cuMemFreeHost(self._memory)


def wait() -> None:
    """Wait for everything queued; raises RuntimeError where a kernel failed."""
    device().synchronize()
