"""Kernels for training on an NVIDIA GPU, on the host."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cuda_emulation import compiled

from gemma4_plugins.devices.cuda.kernels import training as cuda
from gemma4_plugins.devices.cuda.kernels.sources import device_source

random = np.random.default_rng(0)


def bf16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def wide(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def run(kernel: tuple[str, str], blocks: int, threads: int, *buffers: np.ndarray) -> None:
    """A kernel over arrays, the first of which it writes."""
    name, source = kernel
    assert f"#define NAME {name}\n" in source
    grid = map(ctypes.c_int, (blocks, 1, 1, threads))
    addresses = [ctypes.c_void_p(array.ctypes.data) for array in buffers]
    compiled(device_source(source)).launch_NAME(*grid, ctypes.c_size_t(49152), *addresses)


def close(found: np.ndarray, truth: np.ndarray, limit: float = 0.006) -> bool:
    return bool(np.abs(found - truth).max() <= limit * np.abs(truth).max())


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(("m", "k", "r"), [(40, 96, 16), (16, 1056, 32), (5, 544, 64), (33, 1600, 48)])
def test_thin_products(down: bool, m: int, k: int, r: int) -> None:
    x, a = bf16(random.standard_normal((m, k))), bf16(random.standard_normal((k, r) if down else (r, k)))
    out = np.full((m, r), 7, np.uint16)
    run(cuda.thin_kernel(m, k, r, 0.5, down), -(-m // 16), 32 * cuda.thin_warps(k, r), out, x, a)
    assert close(wide(out), 0.5 * wide(x) @ (wide(a) if down else wide(a).T))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("m", "n"), [(5, 8), (37, 256), (18, 520), (3, 1536), (2, 5376)])
def test_norms(weighted: bool, m: int, n: int) -> None:
    bits = [bf16(random.standard_normal(shape)) for shape in ((m, n), (n,), (m, n))]
    x, w, dy = map(wide, bits)
    weights = bits[1:2] if weighted else []
    w = w if weighted else np.ones(n)
    r = 1 / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6)
    d = dy * w
    truths = {0: x * r * w, 1: r * (d - x * (d * x).mean(1, keepdims=True) * r * r), 2: (dy * x * r).sum(0)}
    for mode, inputs in ((0, weights), (1, [*weights, bits[2]]), (2, [bits[2]])):
        kernel = cuda.norm_kernel(m, n, 1e-6, mode, weighted and mode < 2)
        team, parts = cuda.norm_team(n, mode), -(-m // cuda.NORM_ROWS)
        threads = max(team, 128)
        out = np.full((parts, n) if mode == 2 else (m, n), 7, np.float32 if mode == 2 else np.uint16)
        run(kernel, parts if mode == 2 else -(-m * team // threads), threads, out, bits[0], *inputs)
        assert close(out.sum(0) if mode == 2 else wide(out), truths[mode], 1e-5 if mode == 2 else 0.006)
