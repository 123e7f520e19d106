"""tinygrad's kernel search (BEAM) with a time budget for the whole process.

tinygrad times candidates of every kernel without an end in sight. Here a search starts while the budget lasts; after
that, and for a kernel whose search the budget cuts short, tinygrad's heuristics decide. tinygrad keeps finished
searches in its disk cache, where later runs find them without spending budget; an unfinished one is not stored.
Operations that a device brings as source, or with their own options, are not a subject of a search.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gemma4_core.contracts import DeviceSettings
from gemma4_core.devices import machine
from gemma4_core.devices.process import process
from gemma4_core.errors import InputError

SLOW_TARGETS = {"CPU": 10**9, "PYTHON": 10**5}
"""Backends that cannot stop a running kernel, and the most loop iterations that a kernel may have to be searched: at
worst some 10 ns each on a CPU."""
CANDIDATE_SECONDS = 0.3
"""A candidate that takes longer on such a backend is timed once."""
COMPILE_SECONDS = "5"
"""Longest compilation of a candidate (tinygrad's own limit is 10 s)."""


class _BudgetSpent(Exception):
    """Leaves tinygrad's search, which skips a candidate on RuntimeError and passes everything else on."""


class KernelSearch:
    """Counts the time that searches take and ends them when the budget is spent."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.spent = 0.0
        self.searched = 0
        self.skipped = 0
        """Kernels that took the heuristics."""
        self._lock = threading.RLock()
        self._began = 0.0
        self._refused = False
        self._slow = False
        self._told = False

    @property
    def left(self) -> float:
        """Seconds of budget left."""
        return self.seconds - self.spent

    def install(self) -> None:
        """Limit tinygrad's search by this budget, once per process."""
        from tinygrad.codegen.opt import search

        process.replace(search, "beam_search", self._within_budget)
        process.replace(search, "_ensure_buffer_alloc", self._while_budget_lasts)
        process.replace(search, "_time_program", self._timed)
        process.replace(search, "_try_compile", lambda original: _try_compile_quietly)

    def _within_budget(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def beam_search(s: Any, rawbufs: list[Any], *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return self._search(original, s, rawbufs, *args, **kwargs)

        return beam_search

    def _while_budget_lasts(self, original: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Any]]:
        def ensure_buffer_alloc(bufs: list[Any]) -> list[Any]:
            # tinygrad asks for buffers after it has looked into its cache and before anything that takes time.
            if self._refused or self.left <= 0:
                raise _BudgetSpent
            return original(bufs)

        return ensure_buffer_alloc

    def _timed(self, original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def time_program(*args: Any, early_stop: float | None = None, **kwargs: Any) -> list[float]:
            if time.perf_counter() - self._began > self.left:
                raise _BudgetSpent
            self._show()
            if self._slow:
                early_stop = CANDIDATE_SECONDS if early_stop is None else min(early_stop, CANDIDATE_SECONDS)
            return original(*args, early_stop=early_stop, **kwargs)

        return time_program

    def _search(self, original: Callable[..., Any], s: Any, rawbufs: list[Any], *args: Any, **kwargs: Any) -> Any:
        from tinygrad.engine.worker import terminate_worker_pool

        target = s.ren.target.device.split(":")[0]
        limit = SLOW_TARGETS.get(target)
        self._slow = limit is not None
        self._refused = _cannot_be_timed() or (limit is not None and _iterations(s) > limit)
        self._began = time.perf_counter()
        found = None
        try:
            found = original(s, rawbufs, *args, **kwargs)
            self.searched += 1
        except _BudgetSpent:
            if not self._refused and self.left > 0:
                terminate_worker_pool()  # candidates of this kernel still wait to be compiled there
        except Exception:  # a candidate or the memory for it failed: the heuristics do
            terminate_worker_pool()
        finally:
            self.spent += time.perf_counter() - self._began
            self._clear()
        if found is None:
            self.skipped += 1
            found = _heuristics(s)
        return found

    def _show(self) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            spent = self.spent + time.perf_counter() - self._began
            print(
                f"\r\033[Kkernel search: {self.searched + 1} kernels, {spent:.0f} of {self.seconds:.0f} s",
                end="", file=sys.stderr, flush=True,
            )

    def _clear(self) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            return
        print("\r\033[K", end="", file=sys.stderr, flush=True)
        if self.left <= 0 and not self._told:
            self._told = True
            print(
                f"kernel search: {self.seconds:.0f} s are used up; other kernels take tinygrad's heuristics "
                "(--beam-seconds allows more, the next run goes on from here)",
                file=sys.stderr,
            )


kernel_search = KernelSearch()
"""The one of this process."""


def configure_search(target: str, settings: DeviceSettings) -> None:
    """Set tinygrad's search up: width, budget, and on the CPU and PYTHON backends the compile workers.

    Without a width of our own the user's ``BEAM`` holds, within the same budget. Raises InputError for a budget
    that is not a number from 0.
    """
    from tinygrad.helpers import BEAM, PARALLEL, getenv

    seconds = settings.beam_seconds
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0 or math.isinf(seconds):
        raise InputError(f"--beam-seconds {str(seconds)[:100]!r}: must be a number of seconds from 0")
    BEAM.value = settings.beam or getenv("BEAM", 0)
    if BEAM.value < 1:
        return
    kernel_search.seconds = float(seconds)
    if target in SLOW_TARGETS and "PARALLEL" not in os.environ:
        PARALLEL.value = machine.cpu_count()
        os.environ["PARALLEL"] = str(PARALLEL.value)
    os.environ.setdefault("BEAM_TIMEOUT_SEC", COMPILE_SECONDS)
    kernel_search.install()


def _cannot_be_timed() -> bool:
    """tinygrad limits compilations by a signal, which only a main thread can set, or by workers."""
    from tinygrad.helpers import PARALLEL

    workers = PARALLEL.value > 0 and not multiprocessing.current_process().daemon
    return not workers and threading.current_thread() is not threading.main_thread()


def _try_compile_quietly(candidate: tuple[int, Any]) -> tuple[int, Any]:
    """Compile a candidate in a worker without its error output: of candidates that do not compile, and of a compiler
    that is interrupted when the budget is spent."""
    from tinygrad.codegen.opt import search

    if search._try_compile is _try_compile_quietly:  # in this process, not in a worker
        compiled: tuple[int, Any] = process.original(search, "_try_compile")(candidate)
        return compiled
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        return search._try_compile(candidate)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _iterations(s: Any) -> int:
    """Iterations of all loops of a kernel together, symbolic ones at their largest."""
    return math.prod(int(size) if isinstance(size, int) else int(size.vmax) for size in s.full_shape)


def _heuristics(s: Any) -> Any:
    """What tinygrad does to a kernel without a search (tinygrad 0.14 ``codegen/opt/postrange.py: apply_opts``)."""
    from tinygrad.codegen.opt.heuristic import hand_coded_optimizations
    from tinygrad.uop.ops import Ops

    kernel = s.copy()
    staged = any(u.op is Ops.STAGE for u in kernel.ast.backward_slice)
    return kernel if staged else hand_coded_optimizations(kernel)
