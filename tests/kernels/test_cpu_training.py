"""Kernels of this machine's processor for training against double precision, as compiled for it and for others."""

from __future__ import annotations

import ctypes
import math
import mmap
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_masks import drawn_pattern, of_scores
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType
from tinygrad.runtime.support.compiler_cpu import ClangCompiler
from tinygrad.runtime.support.elf import jit_loader

from gemma4_core.ops.attention import Pattern
from gemma4_plugins.devices.cpu import backend
from gemma4_plugins.devices.cpu.kernels import training
from gemma4_plugins.devices.cpu.kernels.training import fused, launching, products

random = np.random.default_rng(0)
SEEDED = random.bit_generator.state
FLOAT, HALF = dtypes.float32, dtypes.bfloat16
LIMITS = {FLOAT: 2e-6, HALF: 0.005}
EMULATION = Path(__file__).parents[1] / "amx_emulation.c"
PARTS = 3
COMPILED = launching.compiled.__wrapped__
FORMS = ("native", "tile registers", "haswell", "nehalem") if platform.machine() == "x86_64" else ("native",)
TYPED = pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True, params=FORMS[:1])
def form(request: pytest.FixtureRequest, cpu: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the kernels are compiled for. They run at once, part by part, over results full of other numbers."""
    random.bit_generator.state = SEEDED
    monkeypatch.setattr(launching, "launch", poisoned)
    monkeypatch.setattr(launching.machine, "thread_count", lambda: PARTS)
    if request.param == "tile registers":
        monkeypatch.setattr(launching, "SHARED", (launching.SHARED[0], EMULATION, *launching.SHARED[1:]))
    def compiled(device: str, unit: str, bf16: bool, files: tuple[Path, ...]) -> bytes | None:
        if request.param in ("native", "tile registers"):
            return COMPILED(device, unit, bf16, files)
        compiler = ClangCompiler(["x86_64", request.param])
        return bytes(compiler.compile_cached(launching.source(unit, bf16, files)))

    monkeypatch.setattr(launching, "compiled", compiled)
    yield request.param


def poisoned(
    name: str, source: str, out: tuple[tuple[int, ...], DType], inputs: Sequence[Tensor], target: Any,
    grid: tuple[int, int, int], parts: int, operations: int, binary: bytes,
) -> Tensor:
    """A kernel's result, from a buffer full of something else that ends where it is to end."""
    assert grid == (parts, 1, 1) and operations > 0
    image = jit_loader(binary, link_libs=[ctypes.CDLL(None)])
    code = mmap.mmap(-1, len(image), prot=7)
    code.write(image)
    shape, dtype = out
    kind, behind = np.uint16 if dtype == HALF else np.float32, 64
    made = np.full(math.prod(shape) + behind, 0x7FC1 if dtype == HALF else 777.25, kind)
    held = [tensor.contiguous().realize() for tensor in inputs]
    arrays = [np.frombuffer(tensor.uop.base.buffer.as_memoryview(), np.uint8) for tensor in held]
    function = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    poison = made[-1]
    for part in range(parts):
        function(*(ctypes.c_uint64(a.ctypes.data) for a in (made, *arrays)), ctypes.c_uint64(part))
    assert (made[-behind:] == poison).all()
    values = made[:-behind].reshape(shape)
    if dtype == HALF:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return Tensor(values).cast(dtype).contiguous().realize()


def drawn(dtype: DType, *shape: int) -> Tensor:
    return Tensor(random.standard_normal(shape, np.float32)).cast(dtype).contiguous().realize()


def wide(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy().astype(np.float64)


def close(found: Tensor | None, truth: np.ndarray, limit: float) -> bool:
    assert found is not None
    values = wide(found)
    return values.shape == truth.shape and bool(np.abs(values - truth).max() <= limit * np.abs(truth).max())


SIZES = [(1, 1, 1), (5, 3, 7), (33, 17, 65), (100, 100, 64), (130, 16, 256), (16, 300, 100), (70, 270, 520)]


@TYPED
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_products(dtype: DType, kind: str, m: int, n: int, k: int) -> None:
    a_down, b_down = products.FORMS[kind]
    a, b = drawn(dtype, *((k, m) if a_down else (m, k))), drawn(dtype, *((k, n) if b_down else (n, k)))
    truth = (wide(a).T if a_down else wide(a)) @ (wide(b) if b_down else wide(b).T)
    assert close(products.matmul(a, b, kind), truth, LIMITS[dtype])
    found = products.matmul(a, b, kind, True)
    assert found is not None and found.dtype == FLOAT and close(found, truth, LIMITS[FLOAT])
    if kind != "tn":
        assert close(products.thin(a, b, -0.375, kind), truth * -0.375, LIMITS[dtype])
        deep = 16
        a2, b2 = drawn(dtype, m, deep), drawn(dtype, *((deep, n) if b_down else (n, deep)))
        more = wide(a2) @ (wide(b2) if b_down else wide(b2).T)
        assert close(products.two_products(a, b, a2, b2, kind), truth + more, LIMITS[dtype])


@TYPED
@pytest.mark.parametrize("kind", ["nt", "nn"])
@pytest.mark.parametrize(("m", "n", "k"), [*SIZES[1:], (64, 64, 96), (40, 130, 65), (20, 33, 34)])
def test_products_with_int8_numbers(dtype: DType, kind: str, m: int, n: int, k: int) -> None:
    """As with a matrix that was unpacked before, to the bit."""
    shape = (k, n) if kind == "nn" else (n, k)
    numbers = Tensor(random.integers(-127, 128, shape).astype(np.int8)).realize()
    scale = Tensor(random.uniform(0.5, 1.5, shape[0]).astype(np.float32) / 74).realize()
    dense = (numbers.cast(FLOAT) * scale.unsqueeze(1)).cast(dtype).contiguous().realize()
    a, a2, b2 = drawn(dtype, m, k), drawn(dtype, m, 16), drawn(dtype, *((16, n) if kind == "nn" else (n, 16)))
    pairs = (
        (products.scaled_product(a, numbers, scale, kind), products.matmul(a, dense, kind)),
        (products.scaled_two_products(a, numbers, scale, a2, b2, kind), products.two_products(a, dense, a2, b2, kind)),
    )
    for found, wanted in pairs:
        assert found is not None and wanted is not None and np.array_equal(wide(found), wide(wanted))
    assert products.scaled_product(a, numbers, scale[:1], kind) is None
    assert products.scaled_product(a, dense, scale, kind) is None


@TYPED
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
@pytest.mark.parametrize(("lead", "shared"), [((3,), (3,)), ((2, 3), (2,)), ((2, 2, 2), (2, 2)), ((4,), ())])
def test_many_products(dtype: DType, kind: str, lead: tuple[int, ...], shared: tuple[int, ...]) -> None:
    m, n, k = 35, 18, 40
    a_down, b_down = products.FORMS[kind]
    a = drawn(dtype, *lead, *((k, m) if a_down else (m, k)))
    b = drawn(dtype, *shared, *((k, n) if b_down else (n, k)))
    left, right = wide(a), wide(b)
    left = left.swapaxes(-1, -2) if a_down else left
    right = right if b_down else right.swapaxes(-1, -2)
    truth = left @ (right if lead == shared else np.expand_dims(right, -3))
    assert close(products.matmul(a, b, kind, True), truth, LIMITS[FLOAT])


@TYPED
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 8), (37, 192), (18, 519), (3, 1536)])
def test_norms(dtype: DType, weighted: bool, m: int, n: int) -> None:
    x, dy, weight = drawn(dtype, m, n), drawn(dtype, m, n), drawn(dtype, n) if weighted else None
    v, d = wide(x), wide(dy)
    w, r = np.ones(n) if weight is None else wide(weight), 1 / np.sqrt((v * v).mean(1, keepdims=True) + 1e-2)
    limit = LIMITS[dtype]
    assert close(fused.rms_norm(x, weight, 1e-2), v * r * w, limit)
    assert close(fused.rms_norm_weight_gradient(x, 1e-2, dy), (d * v * r).sum(0), LIMITS[FLOAT])
    d = d * w
    slope = r * (d - v * (d * v).mean(1, keepdims=True) * r * r)
    assert close(fused.rms_norm_gradient(x, weight, 1e-2, dy), slope, limit * (10 if n == 1 else 1))


@TYPED
@pytest.mark.parametrize(
    ("length", "window", "banded", "segments", "media"),
    [(12, None, False, False, False), (13, 5, False, False, False), (150, 90, False, True, True),
     (16, 4, True, False, False), (45, 20, True, True, False), (21, 6, False, False, True),
     (60, None, False, True, False)],
)  # fmt: skip
def test_attention_weights(
    dtype: DType, length: int, window: int | None, banded: bool, segments: bool, media: bool
) -> None:
    batch, heads, group = 2, 1, 2
    pattern, seen, _ = drawn_pattern(random, batch, length, window, segments, media)
    band = window if banded else None
    seen, real, shape = of_scores(seen, heads, group, band)
    scores, slopes = drawn(FLOAT, *shape) * 3, drawn(dtype, *shape)
    found = fused.softmax(scores, pattern, band, dtype)
    assert found is not None and found.dtype == dtype
    powers = np.where(seen, np.exp(wide(scores)), 0)
    truth = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-30)
    values = wide(found)
    assert np.abs((values - truth)[real]).max() < LIMITS[dtype] and not values[~seen & real[..., None]].any()
    slope = fused.softmax_gradient(found, slopes, pattern, band)
    assert slope is not None and slope.dtype == dtype
    d = wide(slopes)
    truth = values * (d - (values * d).sum(-1, keepdims=True))
    assert np.abs((wide(slope) - truth)[real]).max() < LIMITS[dtype] * np.abs(truth).max()


@TYPED
@pytest.mark.parametrize("cap", [None, 30.0, 200.0])
@pytest.mark.parametrize(("n", "v"), [(1, 2), (3, 8), (5, 9001), (2, 4104)])
def test_cross_entropy(dtype: DType, cap: float | None, n: int, v: int) -> None:
    raw, slopes = (drawn(dtype, n, v) * 20).contiguous().realize(), drawn(FLOAT, n)
    targets = random.integers(0, v, n).astype(np.int32)
    targets[1:2] = -1
    x = wide(raw)
    bend = np.ones_like(x)
    if cap is not None:
        bend, x = 1 - np.tanh(x / cap) ** 2, cap * np.tanh(x / cap)
    total = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
    found = fused.cross_entropy(raw, Tensor(targets), cap)
    truth = np.where(targets < 0, 0, total - x[np.arange(n), targets])
    # of logits near 0, which a cap makes from differences, the last places are the cap's
    limit = 1e-5 * max(1, (cap or 0) / 30)
    assert found is not None and close(found[:, 1], total, limit)
    assert np.abs(wide(found)[:, 0] - truth).max() < limit * max(np.abs(x).max(), 1)
    hit = np.arange(v)[None] == targets[:, None]
    slope = np.where(targets < 0, 0, wide(slopes))[:, None] * (np.exp(x - total[:, None]) - hit) * bend
    made = fused.cross_entropy_gradient(raw, Tensor(targets), cap, found, slopes)
    assert made is not None and made.dtype == dtype and close(made, slope, max(LIMITS[dtype], 3 * limit))


@TYPED
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 111)])
def test_gated(dtype: DType, shape: tuple[int, ...]) -> None:
    gate, up, dy = (drawn(dtype, *shape) * 3).contiguous().realize(), drawn(dtype, *shape), drawn(dtype, *shape)
    x, u, d = map(wide, (gate, up, dy))
    t = np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))
    gelu = 0.5 * x * (1 + t)
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x**2)
    limit = LIMITS[dtype] * 2
    assert close(fused.gated(gate, up), gelu * u, limit)
    gradients = fused.gated_gradients(gate, up, dy)
    assert gradients is not None
    assert close(gradients[0], d * u * slope, limit) and close(gradients[1], d * gelu, limit)


@pytest.mark.slow
@TYPED
@pytest.mark.parametrize("form", FORMS[1:], indirect=True)
def test_other_processors(form: str, dtype: DType) -> None:
    for kind in products.FORMS:
        for size in ((33, 17, 65), (130, 16, 256), (70, 270, 520)):
            test_products(dtype, kind, *size)
            if kind != "tn":
                test_products_with_int8_numbers(dtype, kind, *size)
    test_many_products(dtype, "nn", (2, 3), (2,))
    test_norms(dtype, True, 18, 519)
    test_attention_weights(dtype, 45, 20, True, True, False)
    test_cross_entropy(dtype, 30.0, 5, 9001)
    test_gated(dtype, (2, 7, 111))


def test_what_is_not_served(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, half, double = drawn(FLOAT, 4, 8), drawn(HALF, 4, 8), Tensor.ones(4, 8, dtype=dtypes.float64)
    assert products.matmul(x, half, "nt") is None and products.matmul(double, double, "nt") is None
    assert products.matmul(drawn(FLOAT, 3, 4, 8), drawn(FLOAT, 2, 4, 8), "nt") is None
    assert fused.rms_norm(double, None, 1e-6) is None and fused.softmax(half, Pattern(), None, HALF) is None
    monkeypatch.setattr(launching, "compiled", lambda *given: None)
    assert products.matmul(x, x, "nt") is None and fused.gated_gradients(x, x, x) is None


def test_sources_that_do_not_compile(form: str, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("this is no C", "int without_numbers(void) { return 1; }"):
        monkeypatch.setattr(launching, "source", lambda *given, text=text: text)
        assert COMPILED(cpu, "matmul", False, ()) is None


def test_the_device_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMMA4_KERNELS", raising=False)
    assert backend.operations().matmul is training.matmul and backend.operations().fused is training.FUSED
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    assert backend.operations().matmul is None and backend.operations().fused is None
