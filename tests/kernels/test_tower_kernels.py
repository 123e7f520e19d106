"""The towers' kernels between products against the portable forms of the same numbers: CUDA's on the host, and the
processor's."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from cuda_emulation import compiled
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.ops import portable
from gemma4_core.ops.tower_table import Bounds
from gemma4_core.ops.towers import portable_towers
from gemma4_plugins.devices.cpu.kernels import towers as processor
from gemma4_plugins.devices.cuda.kernels import towers as cuda
from gemma4_plugins.devices.cuda.kernels.sources import device_source
from gemma4_plugins.devices.tower_kernels import Inputs

random = np.random.default_rng(0)
TOLERANCE = {dtypes.float32: 2e-6, dtypes.bfloat16: 1 / 128}
FORMS = [("cuda", dtypes.bfloat16), ("processor", dtypes.bfloat16), ("processor", dtypes.float32)]


def covering(*axes: Sequence[Any]) -> list[Any]:
    """All combinations of values. Of CUDA's, each of which a compiler builds, as many are fast as it takes to have
    every pair of values once."""
    every = [*itertools.product(*axes)]
    pairs = {one: {*itertools.combinations(enumerate(one), 2)} for one in map(repr_of, every)}
    missing, fast = set().union(*pairs.values()), set()
    while missing:
        best = max(pairs, key=lambda one: len(pairs[one] & missing))
        fast.add(best)
        missing -= pairs[best]
    return [
        pytest.param(*form, *one, marks=pytest.mark.slow if form[0] == "cuda" and repr_of(one) not in fast else [],
                     id="-".join(map(str, (*form, *one))))
        for form in FORMS for one in every
    ]  # fmt: skip


def repr_of(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(repr, values))


PORTABLE = portable_towers(portable())


class Emulated(cuda.CudaTowerKernels):
    """CUDA's kernels on the host's tensors; remembers what was launched."""

    def __init__(self) -> None:
        self.fallback = PORTABLE
        self.launched: list[str] = []

    def _run(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Inputs, grid: tuple[int, int],
        threads: int, operations: int,
    ) -> Tensor:
        name, source = cuda.tower_kernel(kernel, constants, inputs)
        self.launched.append(name)
        held = [tensor.contiguous().realize() for tensor in inputs.values()]
        arrays = [np.frombuffer(tensor.uop.base.buffer.as_memoryview(), np.uint8) for tensor in held]
        out = np.zeros(math.prod(shape), np.uint16)
        sizes = map(ctypes.c_int, (*grid, 1, threads))
        buffers = [ctypes.c_void_p(array.ctypes.data) for array in (out, *arrays)]
        compiled(device_source(source)).launch_NAME(*sizes, ctypes.c_size_t(49152), *buffers)
        return Tensor(out.astype(np.uint32) << 16).bitcast(dtypes.float32).reshape(shape).cast(dtypes.bfloat16)


class Processor(processor.CpuTowerKernels):
    """The processor's kernels; remembers what was launched."""

    def __init__(self, device: str) -> None:
        super().__init__(PORTABLE, device)
        self.launched: list[str] = []

    def _launch(self, kernel: str, *rest: Any) -> Tensor:
        self.launched.append(kernel)
        return super()._launch(kernel, *rest)


def kernels(form: str, device: str) -> Any:
    """One launch is expected of each operation."""
    return Emulated() if form == "cuda" else Processor(device)


def drawn(*shape: int, dtype: DType = dtypes.bfloat16, spread: float = 1) -> Tensor:
    return Tensor(random.standard_normal(shape, np.float32) * spread, device="CPU").cast(dtype).contiguous().realize()


def bounds(kind: str, dtype: DType) -> Bounds | None:
    held = lambda value: Tensor([value], device="CPU").cast(dtype).contiguous().realize().reshape(())  # noqa: E731
    constant = lambda value: Tensor(value, dtype=dtype, device="CPU")  # noqa: E731
    kinds: dict[str, Any] = {
        "none": None, "numbers": (-1.25, 0.75), "tensors": (held(-1.25), constant(0.75)),
        "constant and tensor": (constant(-1.25), held(0.75)), "infinite": (-math.inf, constant(math.inf)),
    }
    found: Bounds | None = kinds[kind]
    return found


def close(found: Tensor, truth: Tensor, share: float = 1 / 128) -> None:
    assert found.dtype == truth.dtype or share == 1 / 64
    a, b = found.float().numpy(), truth.float().numpy()
    assert a.shape == b.shape and np.abs(b).max() > 0
    assert np.abs(a - b).max() <= share * np.abs(b).max()


def compared(form: str, device: str, dtype: DType, operation: str, *given: Any) -> None:
    """A kernel, one launch, against the portable form."""
    own = kernels(form, device)
    found = getattr(own, operation)(*given).realize()
    close(found, getattr(PORTABLE, operation)(*given), TOLERANCE[dtype])
    assert len(own.launched) == 1


@pytest.mark.parametrize(
    ("form", "dtype", "kind", "added", "shape"),
    covering(["none", "numbers", "tensors", "constant and tensor", "infinite"], [False, True], [(5, 66), (130, 768)]),
)
def test_norm(cpu: str, form: str, dtype: DType, kind: str, added: bool, shape: tuple[int, int]) -> None:
    rows, width = shape
    x, weight = drawn(rows, width, dtype=dtype), drawn(width, dtype=dtype)
    h = drawn(rows, width, dtype=dtype) if added else None
    compared(form, cpu, dtype, "norm", x, weight, 1e-6, bounds(kind, dtype), h)


@pytest.mark.parametrize(
    ("form", "dtype", "kind", "weighted", "turned", "shape"),
    covering(["none", "tensors"], [False, True], [False, True], [(7, 3, 64), (66, 2, 72), (3, 1, 12)]),
)
def test_heads(
    cpu: str, form: str, dtype: DType, kind: str, weighted: bool, turned: bool, shape: tuple[int, int, int]
) -> None:
    rows, heads, size = shape
    x, weight = drawn(rows, heads * size, dtype=dtype), drawn(size, dtype=dtype) if weighted else None
    angles = random.uniform(0, 50, (rows, 2, size // 4)).astype(np.float32)
    turn = tuple(Tensor(f(angles), device=cpu).realize() for f in (np.cos, np.sin)) if turned else None
    compared(form, cpu, dtype, "heads", x, size, weight, 1e-6, bounds(kind, dtype), turn)


@pytest.mark.parametrize(("form", "dtype"), FORMS, ids=str)
@pytest.mark.parametrize("kinds", [("none", "none", "none"), ("tensors", "numbers", "tensors")], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(3, 40), (70, 96)])
def test_gated(cpu: str, form: str, dtype: DType, kinds: tuple[str, str, str], rows: int, width: int) -> None:
    gate, up = drawn(rows, width, dtype=dtype, spread=4), drawn(rows, width, dtype=dtype)
    compared(form, cpu, dtype, "gated", gate, up, *(bounds(kind, dtype) for kind in kinds))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kinds", [("none", "none"), ("tensors", "numbers")], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (33, 70)])
def test_silu(cpu: str, dtype: DType, kinds: tuple[str, str], rows: int, width: int) -> None:
    x = drawn(rows, width, dtype=dtype, spread=4)
    compared("processor", cpu, dtype, "silu", x, *(bounds(kind, dtype) for kind in kinds))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ["numbers", "tensors", "infinite"])
def test_bounded(cpu: str, dtype: DType, kind: str) -> None:
    own, x, weight = Processor(cpu), drawn(33, 70, dtype=dtype), drawn(70, dtype=dtype)
    limits = bounds(kind, dtype)
    found = own.bounded(own.norm(x, weight, 1e-6), limits)
    expected = PORTABLE.bounded(PORTABLE.norm(x, weight, 1e-6), limits)
    close(found.realize(), expected, TOLERANCE[dtype])
    assert own.launched == ["norm", "bounded"]
    own.bounded(x + 1, limits), own.bounded(own.norm(x, weight, 1e-6), None)
    assert own.launched == ["norm", "bounded", "norm"]  # an expression is bounded as it is computed


@pytest.mark.parametrize("form", ["cuda", "processor"])
def test_gated_far_out(cpu: str, form: str) -> None:
    gate = Tensor(np.array([[-3e4, -300, -50, -12, 12, 50, 300, 3e4]], np.float32)).cast(dtypes.bfloat16).realize()
    found = kernels(form, cpu).gated(gate, Tensor.ones(1, 8, dtype=gate.dtype).contiguous().realize(), None, None, None)
    assert np.allclose(found.float().numpy(), np.maximum(gate.float().numpy(), 0), atol=1e-3)


@pytest.mark.parametrize(
    ("count", "heads", "groups", "size", "seen"), [(64, 1, 1, 64, 64), (128, 4, 2, 72, 70), (192, 2, 1, 24, 129)]
)
def test_attention(cpu: str, count: int, heads: int, groups: int, size: int, seen: int) -> None:
    q, k, v = (drawn(count, n, size) for n in (heads, groups, groups))
    real = Tensor(np.arange(count) < seen).contiguous().realize()
    emulated = Emulated()
    found = emulated.attention(q, k, v, real)
    close(found, PORTABLE.attention(q.float(), k.float(), v.float(), real), 1 / 64)
    assert len(emulated.launched) == 1


@pytest.mark.parametrize(("form", "dtype"), FORMS, ids=str)
def test_nan_stays_nan(cpu: str, form: str, dtype: DType) -> None:
    x, weight = Tensor([[1.0, math.nan], [2, 3]], device=cpu).cast(dtype).contiguous().realize(), drawn(2, dtype=dtype)
    found = kernels(form, cpu).norm(x, weight, 1e-6, (-5.0, 5.0)).realize().float().numpy()
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_what_the_processor_does_not_serve_is_portable(cpu: str) -> None:
    own, plain, x, weight = Processor(cpu), PORTABLE, drawn(4, 8), drawn(8)
    wide = bounds("tensors", dtypes.float32)
    for operation, given in (
        ("norm", (x, weight.float(), 1e-6)), ("norm", (x, weight, 1e-6, wide)), ("silu", (x, None, wide)),
        ("bounded", (x, wide)), ("gated", (x, x.float().realize(), None, None, None)),
    ):  # fmt: skip
        close(getattr(own, operation)(*given), getattr(plain, operation)(*given))
    assert not own.launched


def test_what_kernels_do_not_serve_is_portable(cpu: str) -> None:
    emulated, x, weight = Emulated(), drawn(4, 30), drawn(30)
    close(emulated.norm(x.float(), weight.float(), 1e-6), PORTABLE.norm(x.float(), weight.float(), 1e-6))
    close(emulated.heads(x, 15, None, 1e-6, None, None), PORTABLE.heads(x, 15, None, 1e-6, None, None))
    gate, up = drawn(3, 5), drawn(3, 5)
    close(emulated.gated(gate, up, None, None, None), PORTABLE.gated(gate, up, None, None, None))
    fp32 = (held := drawn(2, dtype=dtypes.float32))[0], held[1]  # bounds of another type than the values
    close(emulated.norm(x, weight, 1e-6, fp32), PORTABLE.norm(x, weight, 1e-6, fp32))
    angles = drawn(4, 2, 2), drawn(4, 2, 2)  # in bf16
    y = drawn(4, 8)
    close(emulated.heads(y, 8, None, 1e-6, None, angles), PORTABLE.heads(y, 8, None, 1e-6, None, angles))
    q, real = drawn(70, 1, 16), Tensor.ones(70, dtype=dtypes.bool).contiguous().realize()
    close(emulated.attention(q, q, q, real), PORTABLE.attention(q, q, q, real))
    assert not emulated.launched
