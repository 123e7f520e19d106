"""Spreads tinygrad's CPU kernels over the cores.

tinygrad 0.14 splits a kernel into parts but runs them one after the other (``CPUProgram.__call__`` in its
``runtime/ops_cpu.py``). Here the parts run at once: on x86-64 Linux through ``thread_pool.c``, elsewhere through Python
threads, whose calls release the interpreter lock.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from gemma4_core.devices.process import process
from gemma4_plugins.devices.native import loader

MODE_RUN, MODE_WORK, MODE_STOP, MODE_CLOCK = range(4)
SPIN_SECONDS = 200e-6
"""How long an idle worker spins for the next kernel before it sleeps: longer than the pause between two kernels, too
short to be noticed when there is nothing to do."""
POOL_BYTES, SPIN_OFFSET, JOB_OFFSET = 4096, 192, 200
MAX_ARGS, MAX_PARTS = 64, 65535
JOIN_SECONDS = 1.0


class Pool(Protocol):
    """Runs the parts of one kernel at a time."""

    kind: str

    def run(self, program: Any, args: list[int], slot: int, parts: int) -> None:
        """Call the program once for each part, with the part's number at ``args[slot]``, and wait for all."""

    def stop(self) -> None:
        """End the threads."""


class NativePool:
    """Worker threads in ``thread_pool.c``. Raises Exception where it cannot be compiled or loaded."""

    kind = "native"

    def __init__(self, threads: int) -> None:
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(_code())
        # Neither code nor state is ever unmapped: a worker may still be on its way when the interpreter ends.
        self._state = loader.map_memory(POOL_BYTES)
        first = 1
        self._word(0).value = first << 32
        self._word(SPIN_OFFSET).value = int(SPIN_SECONDS * self._ticks_per_second())
        self._job = (ctypes.c_char * (POOL_BYTES - JOB_OFFSET)).from_address(self._state + JOB_OFFSET)
        self._threads = [
            threading.Thread(target=self._call, args=(MODE_WORK, self._state, first), daemon=True, name=f"gemma4-{i}")
            for i in range(1, threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, program: Any, args: list[int], slot: int, parts: int) -> None:
        struct.pack_into(f"4Q{len(args)}q", self._job, 0, program.addr, len(args), slot, parts, *args)
        self._call(MODE_RUN, self._state, 0)

    def stop(self) -> None:
        self._call(MODE_STOP, self._state, 0)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _word(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(self._state + offset)

    def _ticks_per_second(self) -> float:
        began, ticks = time.perf_counter(), self._call(MODE_CLOCK, 0, 0)
        time.sleep(0.002)
        return (self._call(MODE_CLOCK, 0, 0) - ticks) / (time.perf_counter() - began)


class PythonPool:
    """Worker threads in Python: some 100 us per kernel."""

    kind = "Python"

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="gemma4")

    def run(self, program: Any, args: list[int], slot: int, parts: int) -> None:
        def part(number: int) -> None:
            values = [ctypes.c_uint64(value) for value in args]
            values[slot] = ctypes.c_uint64(number)
            program.fxn(*values)

        others = [self._executor.submit(part, number) for number in range(1, parts)]
        part(0)
        for other in others:
            other.result()

    def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class Runner:
    """The pool of this process, made when the first kernel needs it, and again in a forked child."""

    def __init__(self) -> None:
        self.threads = 1
        self.pool: Pool | None = None
        self._lock = threading.Lock()
        self._closed = False

    def run(self, program: Any, args: list[int], slot: int, parts: int) -> bool:
        """Run a kernel's parts at once; False, with nothing run, if another thread is using the pool or it has ended.

        The caller then runs them one after the other.
        """
        if self.threads == 1 or parts > MAX_PARTS or not 0 <= slot < len(args) <= MAX_ARGS:
            return False
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._closed:
                return False
            if self.pool is None:
                self.pool = make_pool(self.threads)
            self.pool.run(program, args, slot, parts)
        finally:
            self._lock.release()
        return True

    def resize(self, threads: int) -> None:
        """Use this many threads from the next kernel on."""
        with self._lock:
            if threads != self.threads and self.pool is not None:
                self.pool.stop()
                self.pool = None
            self.threads = threads

    def close(self) -> None:
        """End the threads for good; later kernels run on the thread that calls them."""
        with self._lock:
            self._closed = True
            if self.pool is not None:
                self.pool.stop()
                self.pool = None

    def forget(self) -> None:
        """In a forked child: the threads do not exist there, and one of them may have held the lock."""
        self.pool = None
        self._lock = threading.Lock()


runner = Runner()
"""The pool of this process."""


def native_possible() -> bool:
    """Whether ``thread_pool.c`` is for this machine."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64") and sys.byteorder == "little"


def pool_kind() -> str:
    """What runs the parts, for reports: the existing pool, else the one that would probably be made."""
    return runner.pool.kind if runner.pool is not None else "native" if native_possible() else "Python"


def make_pool(threads: int) -> Pool:
    """The fastest pool that works here."""
    if native_possible():
        try:
            return NativePool(threads)
        except Exception as error:  # another kind of compiler or loader: slower, not broken
            if os.environ.get("GEMMA4_DEBUG") == "1":
                print(f"gemma4: native thread pool: {type(error).__name__}: {error}", file=sys.stderr)
    return PythonPool(threads)


def install(threads: int) -> None:
    """Run tinygrad's CPU kernels on this many threads from now on, and let it split them accordingly."""
    from tinygrad.helpers import NUM_CPU_THREADS
    from tinygrad.runtime.ops_cpu import CPUProgram

    NUM_CPU_THREADS.value = threads
    runner.resize(threads)
    process.replace(CPUProgram, "__call__", on_all_threads)


def on_all_threads(original: Callable[..., float | None]) -> Callable[..., float | None]:
    """``CPUProgram.__call__`` that runs the parts of a kernel at once; returns the seconds if ``wait``."""

    def call(
        self: Any,
        *bufs: Any,
        global_size: tuple[int, int, int] = (1, 1, 1),
        local_size: tuple[int, int, int] = (1, 1, 1),
        vals: tuple[int | None, ...] = (),
        wait: bool = False,
        timeout: int | None = None,
    ) -> float | None:
        slot = self.runtimevars.get("core_id")
        if slot is not None and global_size[0] > 1 and not self.lvp:
            began = time.perf_counter()
            args = [buf.va_addr for buf in bufs]
            args += [0 if value is None else value for value in vals]
            if runner.run(self, args, slot, global_size[0]):
                return time.perf_counter() - began if wait else None
        return original(
            self, *bufs, global_size=global_size, local_size=local_size, vals=vals, wait=wait, timeout=timeout
        )

    atexit.register(runner.close)
    os.register_at_fork(after_in_child=runner.forget)
    return call


def _code() -> int:
    """The address of ``thread_pool.c``'s entry point."""
    return loader.load(Path(__file__).with_name("thread_pool.c").read_text(encoding="utf-8"))
