"""How fast this machine reads memory: a sweep over more than its caches hold, on every thread."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gemma4_core.devices import machine
from gemma4_plugins.devices.native.threads import runner

LARGEST = 2 << 30
"""Bytes: last-level caches of servers hold half a gigabyte."""
SMALLEST = 64 << 20
PASSES = 5
ALIGNMENT = 512


def read_bandwidth(largest: int = LARGEST) -> float | None:
    """Bytes per second of the fastest of a few reads of up to ``largest`` bytes; None with too little free memory."""
    free = machine.free_memory_bytes()
    size = min(largest, (free if free is not None else 4 * SMALLEST) // 4)
    threads = machine.thread_count()
    part = size // threads // ALIGNMENT * ALIGNMENT
    if size < min(SMALLEST, largest) or not part:
        return None
    # memory that was never written is one page of zeros
    data = np.full(part * threads, 1, np.uint8)
    sweep = c_sweep(data, part, threads) or numpy_sweep(data, threads)
    seconds = []
    for _ in range(PASSES):
        began = time.perf_counter()
        sweep()
        seconds.append(time.perf_counter() - began)
    return data.nbytes / min(seconds)


def c_sweep(data: np.ndarray, part: int, threads: int) -> Callable[[], None] | None:
    """One read of ``data`` by ``read.c``, a part per thread; None where code cannot be placed into this process."""
    from gemma4_plugins.devices.cpu.kernels.build import load, loadable

    if not loadable():
        return None
    program, sums = load(("read.c",)), np.zeros((threads, 8), np.uint64)
    arguments = [data.ctypes.data, part, sums.ctypes.data, 0]

    def sweep() -> None:
        if threads == 1 or not runner.run(program, arguments, len(arguments) - 1, threads):
            for number in range(threads):
                program.fxn(*map(ctypes.c_uint64, [*arguments[:-1], number]))

    return sweep


def numpy_sweep(data: np.ndarray, threads: int) -> Callable[[], None]:
    """One read of ``data`` by numpy, which releases the interpreter lock."""
    pool = ThreadPoolExecutor(threads)
    parts = data.view(np.uint64).reshape(threads, -1)
    return lambda: [*pool.map(np.sum, parts)].clear()
