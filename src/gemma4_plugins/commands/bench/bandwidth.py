"""The rate at which a device reads its memory, which decoding speeds are compared with."""

from __future__ import annotations

import time

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import free_memory_bytes

LARGEST, SMALLEST = 1 << 30, 1 << 26
"""Most and least bytes that the sum in tinygrad reads."""
ROWS, PASSES = 2048, 5
EMULATED = ("PYTHON", "NULL")


def read_bandwidth(backend: DeviceBackend) -> float | None:
    """Bytes per second of a plain read, measured by the device plugin, else by a sum in tinygrad.

    Takes a second, and up to a few gigabytes of the device's memory while it runs. None where it cannot be measured.
    """
    try:
        own = backend.read_bandwidth
        found = own() if own is not None else portable_read(backend.target)
    except Exception:
        return None
    return found if found is not None and found > 0 else None


def portable_read(target: str) -> float | None:
    """Bytes per second of the fastest of a few sums over fp32 numbers on an opened tinygrad device."""
    from tinygrad import Device, Tensor, dtypes

    from gemma4_core.ops.graphs import CapturedGraph

    if target in EMULATED:
        return None
    free = free_memory_bytes(target)
    size = min(LARGEST, LARGEST if free is None else free // 4) // (4 * ROWS)
    if size * 4 * ROWS < SMALLEST:
        return None
    data = Tensor.ones(ROWS, size, dtype=dtypes.float32, device=target).contiguous().realize()
    total = CapturedGraph(lambda: data.sum(1).realize())
    seconds = []
    for _ in range(PASSES + 2):  # the first call compiles and captures, the second prepares replays
        Device[target].synchronize()
        began = time.perf_counter()
        total()
        Device[target].synchronize()
        seconds.append(time.perf_counter() - began)
    return int(data.nbytes()) / min(seconds[2:])
