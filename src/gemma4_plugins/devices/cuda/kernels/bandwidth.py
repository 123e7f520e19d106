"""How fast this GPU reads its memory."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from tinygrad import Tensor, dtypes

from gemma4_plugins.devices.cuda.kernels import launch

LARGEST, SMALLEST = 1 << 33, 1 << 28
"""Bytes."""
THREADS, BLOCKS_PER_MULTIPROCESSOR, PASSES = 512, 4, 6


def read_bandwidth(free: int) -> float | None:
    """Bytes per second of the fastest of a few plain reads; ``free`` bytes are left on the device. None with few."""
    size = min(LARGEST, free // 2) // 4096 * 4096
    if size < SMALLEST:
        return None
    source = Path(__file__).with_name("read.cu").read_text(encoding="utf-8")
    kernel = launch.Kernel(source, "read_all", THREADS)
    buffer = Tensor.empty(size, dtype=dtypes.uint8, device=launch.DEVICE)
    place = launch.address(buffer)
    arguments = (ctypes.c_uint64(place), ctypes.c_uint64(size // 16), ctypes.c_uint64(place))
    blocks, seconds = launch.attribute("MULTIPROCESSOR_COUNT") * BLOCKS_PER_MULTIPROCESSOR, []
    for _ in range(PASSES):
        launch.wait()
        began = time.perf_counter()
        kernel.launch(blocks, arguments)
        launch.wait()
        seconds.append(time.perf_counter() - began)
    return size / min(seconds)
