"""Threads for CPU kernels: right results, no hang, nothing to do for idle workers."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from gemma4_plugins.devices.native import compiler, loader, threads

COUNTER = """
typedef unsigned long long u64;
void add(u64* out, const u64 amount, const u64 a, const u64 b, const u64 c, const u64 d, const u64 e, const u64 f,
         const u64 g, const u64 part) {
  __atomic_add_fetch(out + part, amount + (a + b + c + d + e + f + g), 0);
}
"""
NATIVE = pytest.mark.skipif(not threads.native_possible(), reason="the native pool is for x86-64 Linux")


@pytest.fixture(scope="module")
def program() -> SimpleNamespace:
    """A kernel that adds to one counter per part, loaded as tinygrad does."""
    compiler.configure()
    from tinygrad import Device
    from tinygrad.runtime.support.elf import jit_loader

    image = bytes(jit_loader(Device["CPU"].compiler.compile(COUNTER)))
    address = loader.map_memory(len(image))
    ctypes.memmove(address, image, len(image))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), len(image), mmap.PROT_READ | mmap.PROT_EXEC) == 0
    return SimpleNamespace(addr=address, fxn=ctypes.CFUNCTYPE(None)(address))


@pytest.fixture(params=[pytest.param("native", marks=NATIVE), "Python"])
def pool(request: pytest.FixtureRequest, program: SimpleNamespace) -> Iterator[threads.Pool]:
    made = threads.NativePool(3) if request.param == "native" else threads.PythonPool(3)
    yield made
    made.stop()


def test_every_part_runs_once_whatever_their_number(pool: threads.Pool, program: SimpleNamespace) -> None:
    counters, expected = (ctypes.c_uint64 * 64)(), [0] * 64
    rng = random.Random(7)
    for amount in range(20000 if pool.kind == "native" else 300):
        parts = rng.choice([2, 2, 2, 3, 4, 9, 40])
        args = [ctypes.addressof(counters), amount, *[0] * 8]
        pool.run(program, args, 9, parts)
        for part in range(parts):
            expected[part] += amount
        if amount % 500 == 0:
            time.sleep(rng.random() * 0.001)  # around the moment when workers go to sleep
    assert list(counters) == expected


def test_negative_scalars_arrive_as_they_are(pool: threads.Pool, program: SimpleNamespace) -> None:
    counters = (ctypes.c_uint64 * 2)()
    pool.run(program, [ctypes.addressof(counters), 5, -7, *[0] * 7], 9, 2)
    assert list(counters) == [2**64 - 2] * 2


@NATIVE
def test_idle_workers_take_no_time(program: SimpleNamespace) -> None:
    made = threads.NativePool(4)
    made.run(program, [ctypes.addressof((ctypes.c_uint64 * 2)()), 1, *[0] * 8], 9, 2)
    time.sleep(0.05)
    began = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - began < 0.1
    made.stop()
    assert not any(thread.is_alive() for thread in made._threads)


def test_two_callers_at_once(program: SimpleNamespace) -> None:
    runner = threads.Runner()
    runner.resize(2)
    counters = (ctypes.c_uint64 * 2)()
    ran: list[bool] = []

    def work() -> None:
        for _ in range(500):
            ran.append(runner.run(program, [ctypes.addressof(counters), 1, *[0] * 8], 9, 2))

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(ran) == 1500
    assert list(counters) == [sum(ran)] * 2  # those that were refused ran nothing
    runner.close()
    assert runner.run(program, [ctypes.addressof(counters), 1, *[0] * 8], 9, 2) is False


def test_what_the_pool_does_not_take(program: SimpleNamespace) -> None:
    runner = threads.Runner()
    assert runner.run(program, [0, 0], 1, 2) is False
    runner.resize(2)
    assert runner.run(program, [0] * 65, 64, 2) is False
    assert runner.run(program, [0, 0], 2, 2) is False
    assert runner.run(program, [0, 0], 1, 70000) is False
    assert runner.pool is None


def test_broken_native_pool_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise OSError("no executable memory")

    monkeypatch.setattr(threads, "_code", broken)
    made = threads.make_pool(2)
    assert made.kind == "Python"
    made.stop()


def test_tinygrad_kernels_run_on_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinygrad import Tensor, TinyJit
    from tinygrad.helpers import NUM_CPU_THREADS

    before = NUM_CPU_THREADS.value, threads.runner.threads
    compiler.configure()
    threads.install(4)
    try:
        rng = np.random.default_rng(3)
        a, b = (rng.standard_normal((256, 256), dtype=np.float32) for _ in range(2))
        weights = Tensor(b, device="CPU").realize()
        taken: list[int] = []
        run = threads.runner.run
        monkeypatch.setattr(threads.runner, "run", lambda *args: taken.append(args[-1]) or run(*args))
        product = TinyJit(lambda x: (x @ weights).relu().realize())
        for _ in range(4):
            got = product(Tensor(a, device="CPU").realize()).numpy()
            np.testing.assert_allclose(got, np.maximum(a @ b, 0), atol=1e-3)
        assert taken and max(taken) == 4
        assert threads.pool_kind() == ("native" if threads.native_possible() else "Python")
    finally:
        NUM_CPU_THREADS.value = before[0]
        threads.runner.resize(before[1])


PROGRAM = """
import os, sys
from gemma4_core.contracts import DeviceSettings
from gemma4_plugins.devices.cpu import backend as cpu
assert cpu.unusable() is None
cpu.prepare(DeviceSettings())
from tinygrad import Tensor
x = Tensor.ones(256, 256, device="CPU").contiguous().realize()
def sum_of_product(): return (x @ x).sum().item()
assert sum_of_product() == 256.0**3
{rest}
"""
FORK = """
child = os.fork()
if child == 0:
    ok = sum_of_product() == 256.0**3
    print("child", ok, flush=True)
    os._exit(0 if ok else 1)
assert os.waitpid(child, 0)[1] == 0
assert sum_of_product() == 256.0**3
print("parent", flush=True)
"""


def run_program(rest: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM.format(rest=rest)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100,
        env={**os.environ, "GEMMA4_THREADS": "2", "PARALLEL": "0", **environment},
    )  # fmt: skip


def test_forked_child_has_threads_of_its_own() -> None:
    done = run_program(FORK)
    assert (done.returncode, done.stderr, done.stdout.split("\n")[:2]) == (0, "", ["child True", "parent"])


@pytest.mark.parametrize(("rest", "code"), [("", 0), ("sys.exit(3)", 3), ("raise SystemExit(4)", 4)])
def test_interpreter_ends_while_workers_look_out_for_work(rest: str, code: int) -> None:
    done = run_program(rest)
    assert (done.returncode, done.stderr) == (code, "")


def test_thread_count_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = "from gemma4_plugins.devices.native import threads; print(threads.runner.threads)"
    done = run_program(rest, GEMMA4_THREADS="3")
    assert done.stdout == "3\n"
