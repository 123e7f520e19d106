"""Kernels for training on an NVIDIA GPU, on the host."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from attention_masks import drawn_pattern, of_scores
from cuda_emulation import compiled

from gemma4_plugins.devices.cuda.kernels import matmul as products
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


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize(
    ("length", "window", "banded", "segments", "media"),
    [(12, None, False, False, False), (13, 5, False, False, False), (516, 300, False, True, True),
     (16, 4, True, False, False), (18, 4, True, True, False), (21, 6, False, False, True),
     (20, None, False, True, False)],
)  # fmt: skip
def test_attention_weights(length: int, window: int | None, banded: bool, segments: bool, media: bool) -> None:
    batch, heads, group = (2, 1, 2) if length < 100 else (1, 1, 1)
    pattern, seen, numbers = drawn_pattern(random, batch, length, window, segments, media)
    band = window if banded else None
    seen, real, shape = of_scores(seen, heads, group, band)
    scores, slopes = random.standard_normal(shape).astype(np.float32) * 3, bf16(random.standard_normal(shape))
    blocks, threads = int(np.prod(shape[:-1])), cuda.softmax_threads(shape[-1])
    out, slope = np.full(shape, 7, np.uint16), np.full(shape, 7, np.uint16)
    run(cuda.softmax_kernel(shape, pattern, band, False), blocks, threads, out, scores, *numbers)
    run(cuda.softmax_kernel(shape, pattern, band, True), blocks, threads, slope, out, slopes)
    powers = np.where(seen, np.exp(np.float64(scores)), 0)
    truth = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-30)
    assert close(wide(out)[real], truth[real]) and not wide(out)[~seen & real[..., None]].any()
    p, d = wide(out), wide(slopes)
    assert close(wide(slope)[real], (p * (d - (p * d).sum(-1, keepdims=True)))[real])


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize(("n", "v"), [(3, 8), (5, 9000), (2, 4104)])
def test_cross_entropy(cap: float | None, n: int, v: int) -> None:
    raw, slopes = bf16(random.standard_normal((n, v)) * 20), random.uniform(0.5, 1, n).astype(np.float32)
    targets = random.integers(0, v, n).astype(np.int32)
    targets[1] = -100
    x = wide(raw)
    bent = np.tanh(x / cap) if cap else np.zeros_like(x)
    logits = cap * bent if cap else x
    total = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    real = targets >= 0
    out, slope = np.full((n, 2), 7, np.float32), np.full((n, v), 7, np.uint16)
    run(cuda.cross_entropy_kernel(n, v, cap, False), n, cuda.LOSS_THREADS, out, raw, targets)
    kernel, blocks = cuda.cross_entropy_kernel(n, v, cap, True), n * cuda.loss_chunks(n)
    run(kernel, blocks, cuda.LOSS_THREADS, slope, raw, targets, out, slopes)
    assert close(out[:, 0], np.where(real, total - logits[np.arange(n), np.maximum(targets, 0)], 0), 1e-5)
    truth = np.exp(logits - total[:, None])
    truth[np.arange(n), np.maximum(targets, 0)] -= 1
    assert close(wide(slope), truth * (slopes * real)[:, None] * (1 - bent * bent))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("t", "r", "n"), [(5, 16, 72), (300, 16, 64), (131, 32, 200)])
def test_thin_gradients(turned: bool, t: int, r: int, n: int) -> None:
    u, x = bf16(random.standard_normal((t, r))), bf16(random.standard_normal((t, n)))
    out = np.full((n, r) if turned else (r, n), 7, np.float32)
    kernel = products.thin_gradient_kernel(t, r, n, turned)
    run(kernel, -(-n // 64), 32 * products.thin_gradient_warps(r), out, u, x)
    assert close(out.T if turned else out, wide(u).T @ wide(x), 1e-5)


@pytest.mark.parametrize("count", [8, 2064])
def test_gated_mlps(count: int) -> None:
    bits = [bf16(random.standard_normal(count) * 4) for _ in range(3)]
    gate, up, dy = map(wide, bits)
    bent = np.tanh(0.7978845608028654 * (gate + 0.044715 * gate**3))
    gelu = 0.5 * gate * (1 + bent)
    slope = 0.5 * (1 + bent) + 0.5 * gate * (1 - bent**2) * 0.7978845608028654 * (1 + 3 * 0.044715 * gate**2)
    for mode, inputs, truth in ((0, bits[1:2], gelu * up), (1, bits[2:], dy * gelu), (2, bits[:0:-1], dy * up * slope)):
        out, blocks = np.full(count, 7, np.uint16), -(-count // (8 * cuda.GATED_THREADS))
        run(cuda.gated_kernel(count, mode), blocks, cuda.GATED_THREADS, out, bits[0], *inputs)
        assert close(wide(out), truth)
