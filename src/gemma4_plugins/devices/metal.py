"""Apple GPUs through Metal."""

from __future__ import annotations

import sys

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import chosen_by_dev, machine
from gemma4_core.hookspecs import hookimpl
from gemma4_plugins.devices.probing import open_device
from gemma4_plugins.devices.uops import operations

TARGET = "METAL"


def unusable() -> str | None:
    """None where this process can open a Metal device."""
    if sys.platform != "darwin":
        return f"Metal needs macOS, this is {sys.platform}; use --device auto"
    reason = open_device(TARGET)
    if reason is None:
        return None
    return f"this process cannot open a Metal device: {reason}; run it outside sandboxes and remote sessions"


@hookimpl
def gemma4_devices() -> list[DeviceBackend]:
    return [
        DeviceBackend(
            name="metal",
            summary="Apple GPU through Metal",
            target=TARGET,
            unusable=unusable,
            operations=operations,
            free_memory=machine.free_memory_bytes,
            matches=chosen_by_dev(TARGET),
            priority=50,
        )
    ]
