"""The plain read that speeds are compared with."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from gemma4_core.contracts import DeviceBackend
from gemma4_core.devices import machine
from gemma4_core.plugins import registry
from gemma4_plugins.commands.bench import bandwidth as core
from gemma4_plugins.devices.cpu import bandwidth
from gemma4_plugins.devices.cpu.kernels.build import load


def test_the_sweep_reads_every_byte(cpu: str) -> None:
    data = np.random.default_rng(3).integers(0, 256, 1 << 16, np.uint8)
    program, sums = load(("read.c",)), np.zeros((4, 8), np.uint64)
    for part in range(4):
        program.fxn(*map(ctypes.c_uint64, (data.ctypes.data, data.nbytes // 4, sums.ctypes.data, part)))
    expected = np.bitwise_xor.reduce(data.view(np.uint64).reshape(4, -1, 8), axis=1)
    assert (sums == expected).all()


def test_processors_tell_a_rate(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pool = bandwidth.read_bandwidth(1 << 22)
    monkeypatch.setattr(bandwidth, "c_sweep", lambda *rest: None)
    with_numpy = bandwidth.read_bandwidth(1 << 22)
    assert with_pool and with_numpy and all(1e7 < rate < 1e14 for rate in (with_pool, with_numpy))
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1 << 20)
    assert bandwidth.read_bandwidth() is None


def test_devices_without_one_get_a_sum_and_broken_ones_nothing(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "LARGEST", 1 << 20)
    monkeypatch.setattr(core, "SMALLEST", 1 << 16)
    plain = DeviceBackend("plain", "", "CPU", lambda: None)
    rate = core.read_bandwidth(plain)
    assert rate is not None and math.isfinite(rate) and rate > 1e6
    for broken in (lambda: 1 // 0, lambda: None, lambda: 0.0):
        assert core.read_bandwidth(DeviceBackend("x", "", "CPU", lambda: None, read_bandwidth=broken)) is None
    assert core.read_bandwidth(DeviceBackend("x", "", "PYTHON", lambda: None)) is None
    assert registry.devices["cpu"].read_bandwidth is not None and registry.devices["cuda"].read_bandwidth is not None
