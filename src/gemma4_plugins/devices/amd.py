"""AMD GPUs through tinygrad's own driver."""

from __future__ import annotations

import os

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import chosen_by_dev
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.devices.probing import open_device
from gemma4_plugins.devices.uops import operations

TARGET = "AMD"
CONTROL = "/dev/kfd"


def unusable() -> str | None:
    """None where the GPU opens through the amdgpu kernel driver and a HIP compiler is there.

    tinygrad's PCI and USB interfaces, which take the GPU from its kernel driver, are used only where ``DEV`` asks.
    """
    from tinygrad.helpers import DEV

    if not DEV.target(TARGET).interface:
        if not os.path.exists(CONTROL):
            return f"no AMD GPU driver here ({CONTROL} is absent); install amdgpu, or use --device cpu"
        if not os.access(CONTROL, os.R_OK | os.W_OK):
            return f"no permission for {CONTROL}; add your user to the groups render and video"
    reason = open_device(TARGET, interface="KFD", isolated=True)
    if reason is None:
        return None
    if "comgr" in reason:
        return "the AMD GPU opens but its compiler library (comgr) is absent; install ROCm's comgr"
    return f"the AMD GPU does not open: {reason}; check rocminfo"


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    return [
        DeviceBackend(
            name="amd",
            summary="AMD GPU through tinygrad's own driver",
            target=TARGET,
            unusable=unusable,
            operations=operations,
            matches=chosen_by_dev(TARGET),
            priority=20,
        )
    ]
