"""Page-locked memory that checkpoints are read into and the GPU copies from."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from tinygrad.device import Buffer

from gemma4_plugins.devices.cuda.kernels import launch

SLOTS, SLOT_BYTES = 12, 4 << 20
"""Enough for all readers to be ahead of the bus; a slot is read in less than a millisecond."""


class PinnedStaging:
    """Slots of page-locked memory, copied on tinygrad's own stream."""

    def __init__(self) -> None:
        cuda, check = launch.driver()
        self.memory = launch.HostBuffer((SLOTS, SLOT_BYTES), np.uint8)
        self.slots: Sequence[np.ndarray] = list(self.memory.array)
        self.events = [cuda.CUevent() for _ in range(SLOTS)]
        for event in self.events:
            check(cuda.cuEventCreate(ctypes.byref(event), cuda.CU_EVENT_DISABLE_TIMING))

    def copy(self, slot: int, size: int, buffer: Buffer, offset: int) -> None:
        """Queue a copy into a buffer of the device, ``offset`` bytes from its start."""
        cuda, check = launch.driver()
        target = cuda.CUdeviceptr_v2(int(buffer.get_buf(launch.DEVICE).value) + offset)
        launch.device()
        check(cuda.cuMemcpyHtoDAsync_v2(target, ctypes.c_void_p(self.slots[slot].ctypes.data), size, None))
        check(cuda.cuEventRecord(self.events[slot], None))

    def wait(self, slot: int) -> None:
        """Return when the slot's copy is done; at once where there was none."""
        cuda, check = launch.driver()
        launch.device()
        check(cuda.cuEventSynchronize(self.events[slot]))

    def __del__(self) -> None:
        for event in getattr(self, "events", ()):
            launch.driver()[0].cuEventSynchronize(event)  # before the memory goes
            launch.driver()[0].cuEventDestroy_v2(event)
