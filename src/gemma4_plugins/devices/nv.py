"""NVIDIA GPUs through tinygrad's own driver, without CUDA libraries."""

from __future__ import annotations

import os

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import chosen_by_dev
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.devices.probing import open_device
from gemma4_plugins.devices.uops import operations

TARGET = "NV"
CONTROL = "/dev/nvidiactl"


def unusable() -> str | None:
    """None where tinygrad's driver opens the GPU through NVIDIA's kernel module.

    tinygrad's PCI interface, which takes the GPU from its kernel driver, is used only where ``DEV`` asks for it.
    """
    from tinygrad.helpers import DEV

    if not DEV.target(TARGET).interface and not os.path.exists(CONTROL):
        return f"no NVIDIA kernel driver here ({CONTROL} is absent); install it, or use --device cpu"
    reason = open_device(TARGET, interface="NVK", isolated=True)
    if reason is None:
        return None
    if reason.startswith("StopIteration"):
        return "tinygrad's own driver does not know this GPU generation; use --device cuda"
    return f"tinygrad's own driver does not open the GPU: {reason}; use --device cuda"


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    return [
        DeviceBackend(
            name="nv",
            summary="NVIDIA GPU through tinygrad's own driver",
            target=TARGET,
            unusable=unusable,
            operations=operations,
            matches=chosen_by_dev(TARGET),
            priority=30,
        )
    ]
