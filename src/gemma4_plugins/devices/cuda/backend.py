"""NVIDIA GPUs through the CUDA driver and NVRTC."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import chosen_by_dev
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.devices.probing import open_device

if TYPE_CHECKING:
    from gemma4_core.contracts import Staging
    from gemma4_core.ops import Operations

TARGET = "CUDA"


def operations() -> Operations:
    """Kernels written in UOps; from compute capability 8.0 on the CUDA kernels before them."""
    from tinygrad import Device

    from gemma4_plugins.devices import uops
    from gemma4_plugins.devices.cuda import kernels
    from gemma4_plugins.devices.cuda.kernels import dynamic, launch
    from gemma4_plugins.devices.cuda.kernels.machine_code import use_machine_code

    use_machine_code(TARGET)
    # programs from disk are loaded without being traced
    dynamic.load_with_memory(Device[TARGET])
    return kernels.operations() if launch.attribute("COMPUTE_CAPABILITY_MAJOR") >= 8 else uops.operations()


def unusable() -> str | None:
    """None where a CUDA device opens and NVRTC loads."""
    reason = open_device(TARGET)
    if reason is None:
        _use_in_this_thread()
        return None
    if "load library nvrtc" in reason:
        return "the CUDA driver works but NVRTC, its compiler, is absent; install the CUDA toolkit and set CUDA_PATH"
    if "load library cuda" in reason:
        return "no CUDA driver (libcuda) is installed here; install the NVIDIA driver or use --device cpu"
    if "Error 100," in reason:
        return "no NVIDIA GPU is visible here; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return f"the CUDA device does not open: {reason}; check nvidia-smi"


def _use_in_this_thread() -> None:
    """Make the device's context current: it was opened in a thread of its own."""
    from tinygrad import Device
    from tinygrad.runtime.autogen import cuda
    from tinygrad.runtime.ops_cuda import check

    check(cuda.cuCtxSetCurrent(Device[TARGET].context))


def free_memory() -> int | None:
    """Free bytes of the GPU."""
    from tinygrad.runtime.autogen import cuda
    from tinygrad.runtime.ops_cuda import check

    _use_in_this_thread()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return int(free.value)


def read_bandwidth() -> float | None:
    """Bytes per second of a plain read."""
    from gemma4_plugins.devices.cuda.kernels.bandwidth import read_bandwidth

    return read_bandwidth(free_memory() or 0)


def staging() -> Staging:
    """Page-locked memory to load through."""
    from gemma4_plugins.devices.cuda.kernels.staging import PinnedStaging

    return PinnedStaging()


def details() -> dict[str, str]:
    """The GPU's name and architecture."""
    from tinygrad import Device
    from tinygrad.runtime.autogen import cuda
    from tinygrad.runtime.ops_cuda import check

    device, name = Device[TARGET], ctypes.create_string_buffer(200)
    check(cuda.cuDeviceGetName(ctypes.cast(name, ctypes.POINTER(ctypes.c_char)), len(name), device.cu_device))
    return {"GPU": name.value.decode(errors="replace"), "architecture": str(device.arch)}


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    return [
        DeviceBackend(
            name="cuda",
            summary="NVIDIA GPU through the CUDA driver",
            target=TARGET,
            unusable=unusable,
            free_memory=free_memory,
            operations=operations,
            details=details,
            read_bandwidth=read_bandwidth,
            staging=staging,
            matches=chosen_by_dev(TARGET),
            priority=40,
        )
    ]
