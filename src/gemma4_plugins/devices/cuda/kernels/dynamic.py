"""Kernels of tinygrad's graph with more shared memory than 48 KB, or with instructions that need an architecture's own features.

tinygrad 0.14 compiles for ``sm_90``, not ``sm_90a``, and asks for no dynamic shared memory: the machine code is compiled
here, and the bytes stand at the end of a kernel's name, where the program that loads it finds them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from tinygrad import Device
from tinygrad.helpers import Context as TinygradContext

from gemma4_core.ops.late import LateBinary, may_be_late
from gemma4_plugins.devices.cuda.kernels import launch

BYTES = re.compile(r"_dynamic(\d+)$")


def named(name: str, shared_bytes: int) -> str:
    """A kernel's name that tells its dynamic shared memory."""
    return f"{name}_dynamic{shared_bytes}"


def shared_bytes(name: str) -> int:
    """What a kernel's name tells of it."""
    found = BYTES.search(name)
    return int(found[1]) if found else 0


@lru_cache
def prepared(device: str) -> bool:
    """Let a device load such programs; whether the compiler knows its architecture's own features."""
    # products are traced with devices locked where training recomputes layers
    with TinygradContext(ALLOW_DEVICE_USAGE=1):
        load_with_memory(Device[device])
        return features_known()


def compiled(device: str, source: str) -> bytes | LateBinary | None:
    """Machine code for a CUDA device with its architecture's own features; None where the compiler does not know those.
    Raises tinygrad's CompileError."""
    if not prepared(device):
        return None
    return LateBinary(machine_code, source) if may_be_late() else machine_code(source)


@lru_cache
def machine_code(source: str) -> bytes:
    """Compile for the card's architecture with its own features. Raises tinygrad's CompileError."""
    return bytes(launch.compiler(launch.features()).compile_cached(source))


@lru_cache
def features_known() -> bool:
    """Whether the compiler knows the architecture's own features: CUDA 11's knows sm_90, but not sm_90a."""
    from tinygrad.device import CompileError

    try:
        launch.compiler(launch.features()).compile_cached('extern "C" __global__ void nothing() {}')
    except CompileError:
        return False
    return True


def load_with_memory(opened: Any) -> None:
    """Let a device load programs with the dynamic shared memory that their names tell."""
    from tinygrad.runtime.ops_cuda import CUDAProgram

    class NamedMemoryProgram(CUDAProgram):
        """A program whose kernel's name may tell its dynamic shared memory."""

        def __init__(self, dev: Any, obj: Any) -> None:
            super().__init__(dev, obj, shared_bytes(obj.name))

    if opened.runtime_t is CUDAProgram:
        opened.runtime_t = NamedMemoryProgram
