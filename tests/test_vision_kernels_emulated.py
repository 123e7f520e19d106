"""The towers' CUDA kernels, run on the host, against the portable forms of the same bf16 numbers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cuda_emulation import compiled
from tinygrad import Tensor, dtypes

from gemma4_core.ops import portable
from gemma4_plugins.kernels.cuda.sources import device_source
from gemma4_plugins.modalities import cuda
from gemma4_plugins.modalities.bounds import Bounds
from gemma4_plugins.modalities.products import Products

random = np.random.default_rng(0)


class Emulated(cuda.CudaProducts):
    """The kernels on the host's tensors; counts what they were asked for."""

    def __init__(self) -> None:
        Products.__init__(self, portable())
        self.launched: list[str] = []

    def _launch(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Mapping[str, Tensor],
        grid: tuple[int, int], threads: int, operations: int,
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


def drawn(*shape: int, spread: float = 1) -> Tensor:
    return Tensor(random.standard_normal(shape, np.float32) * spread).cast(dtypes.bfloat16).contiguous().realize()


def bounds(kind: str) -> Bounds | None:
    held = lambda value: Tensor([value]).cast(dtypes.bfloat16).contiguous().realize().reshape(())  # noqa: E731
    constant = lambda value: Tensor(value, dtype=dtypes.bfloat16)  # noqa: E731
    return {"none": None, "numbers": (-1.25, 0.75), "tensors": (held(-1.25), constant(0.75))}[kind]  # type: ignore[return-value]


def close(found: Tensor, truth: Tensor, share: float = 1 / 128) -> None:
    a, b = found.float().numpy(), truth.float().numpy()
    assert a.shape == b.shape and np.abs(b).max() > 0
    assert np.abs(a - b).max() <= share * np.abs(b).max()


@pytest.mark.parametrize("kind", ["none", "numbers", "tensors"])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(5, 66), (130, 768)])
def test_norm(cpu: str, kind: str, added: bool, rows: int, width: int) -> None:
    x, weight, h = drawn(rows, width), drawn(width), drawn(rows, width) if added else None
    emulated = Emulated()
    found = emulated.norm(x, weight, 1e-6, bounds(kind), h)
    close(found, Products(portable()).norm(x, weight, 1e-6, bounds(kind), h))
    assert len(emulated.launched) == 1


@pytest.mark.parametrize("kind", ["none", "tensors"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("rows", "heads", "size"), [(7, 3, 64), (66, 2, 72), (3, 1, 12)])
def test_heads(cpu: str, kind: str, weighted: bool, turned: bool, rows: int, heads: int, size: int) -> None:
    x, weight = drawn(rows, heads * size), drawn(size) if weighted else None
    angles = random.uniform(0, 50, (rows, 2, size // 4)).astype(np.float32)
    turn = (Tensor(np.cos(angles)).realize(), Tensor(np.sin(angles)).realize()) if turned else None
    emulated = Emulated()
    found = emulated.heads(x, size, weight, 1e-6, bounds(kind), turn)
    close(found, Products(portable()).heads(x, size, weight, 1e-6, bounds(kind), turn))
    assert len(emulated.launched) == 1


@pytest.mark.parametrize("kinds", [("none", "none", "none"), ("tensors", "numbers", "tensors")], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(3, 40), (70, 96)])
def test_gated(cpu: str, kinds: tuple[str, str, str], rows: int, width: int) -> None:
    gate, up = drawn(rows, width, spread=4), drawn(rows, width)
    emulated = Emulated()
    found = emulated.gated(gate, up, *map(bounds, kinds))
    close(found, Products(portable()).gated(gate, up, *map(bounds, kinds)))
    assert len(emulated.launched) == 1


def test_gated_far_out(cpu: str) -> None:
    gate = Tensor(np.array([[-3e4, -300, -50, -12, 12, 50, 300, 3e4]], np.float32)).cast(dtypes.bfloat16).realize()
    found = Emulated().gated(gate, Tensor.ones_like(gate).contiguous().realize(), None, None, None)
    assert np.allclose(found.float().numpy(), np.maximum(gate.float().numpy(), 0), atol=1e-3)


@pytest.mark.parametrize(
    ("count", "heads", "groups", "size", "seen"), [(64, 1, 1, 64, 64), (128, 4, 2, 72, 70), (192, 2, 1, 24, 129)]
)
def test_attention(cpu: str, count: int, heads: int, groups: int, size: int, seen: int) -> None:
    q, k, v = (drawn(count, n, size) for n in (heads, groups, groups))
    real = Tensor(np.arange(count) < seen).contiguous().realize()
    emulated = Emulated()
    found = emulated.attend(q, k, v, real)
    close(found, Products(portable()).attend(q.float(), k.float(), v.float(), real), 1 / 64)
    assert len(emulated.launched) == 1


def test_what_kernels_do_not_serve_is_portable(cpu: str) -> None:
    emulated, x, weight = Emulated(), drawn(4, 30), drawn(30)
    close(emulated.norm(x.float(), weight.float(), 1e-6), Products(portable()).norm(x.float(), weight.float(), 1e-6))
    close(emulated.heads(x, 15, None, 1e-6, None, None), Products(portable()).heads(x, 15, None, 1e-6, None, None))
    gate, up = drawn(3, 5), drawn(3, 5)
    close(emulated.gated(gate, up, None, None, None), Products(portable()).gated(gate, up, None, None, None))
    q, real = drawn(70, 1, 16), Tensor.ones(70, dtype=dtypes.bool).contiguous().realize()
    close(emulated.attend(q, q, q, real), Products(portable()).attend(q, q, q, real))
    assert not emulated.launched
