"""Any other tinygrad backend: the one that ``DEV`` names, and the common ones by their own names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gemma4_core.contracts import Context, DeviceBackend
from gemma4_core.devices import requested_target
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.devices.probing import open_device
from gemma4_plugins.devices.uops import operations

if TYPE_CHECKING:
    from gemma4_core.ops import Operations

OWN_PLUGINS = ("CPU", "CUDA", "NV", "METAL", "AMD")
UNNAMED = "TINYGRAD"
"""Stands for a backend where ``DEV`` names none."""
WITH_KERNELS = ("CL", "QCOM")
"""Backends that run the kernels written in UOps as they are: with memory that threads share, and enough buffers."""
BY_NAME = {
    "CL": "any GPU with an OpenCL driver",
    "WEBGPU": "any GPU through WebGPU (Dawn)",
    "QCOM": "Qualcomm GPU through tinygrad's own driver",
    "PYTHON": "tinygrad's emulator in Python: very slow, for tests",
}


def other_backend() -> str | None:
    """The backend that ``DEV`` names, unless a plugin of its own serves it."""
    target = requested_target()
    return None if target in OWN_PLUGINS else target


def unusable(target: str) -> str | None:
    """None where the backend opens."""
    from tinygrad import Device

    if target == UNNAMED:
        return "it serves the backend that tinygrad's DEV names; set DEV=CL, for example"
    if target not in Device._devices:
        known = ", ".join(sorted(set(Device._devices) - {"DISK", "NPY", "TINYFS", "RDMA"}))
        return f"DEV names '{target[:40]}', which tinygrad does not have; it has {known}"
    reason = open_device(target)
    return None if reason is None else f"tinygrad's {target} backend does not open: {reason}; use --device auto"


def operations_of(target: str) -> Callable[[], Operations] | None:
    """What a backend computes with; None for the portable operations alone."""
    return operations if target in WITH_KERNELS else None


def _only_by_name(context: Context) -> bool:
    return False


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    named = other_backend() or UNNAMED
    generic = DeviceBackend(
        name="tinygrad",
        summary="the tinygrad backend that DEV names",
        target=named,
        unusable=partial(unusable, named),
        operations=operations_of(named),
        matches=lambda context: other_backend() is not None,
    )
    others = [
        DeviceBackend(
            name=target.lower(),
            summary=summary,
            target=target,
            unusable=partial(unusable, target),
            operations=operations_of(target),
            matches=_only_by_name,
        )
        for target, summary in BY_NAME.items()
    ]
    return [generic, *others]
