"""The towers' kernels for this processor against double precision, and the portable form beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reference_data import load_multimodal
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType
from training_tools import short

from gemma4_core import registry
from gemma4_core.ops import Operations, portable
from gemma4_core.ops.tower_table import TowerOperations
from gemma4_core.ops.towers import portable_towers, tower_operations
from gemma4_core.weights import DenseMatrix
from gemma4_plugins.devices.cpu.kernels import towers as cpu_kernels
from gemma4_plugins.devices.cuda.kernels import matmul as cuda_matmul

random = np.random.default_rng(0)
SEEDED = random.bit_generator.state
TOLERANCE = {dtypes.float32: 2e-5, dtypes.bfloat16: 0.04}
FORMS = ("portable", "kernels", "tile registers")
EMULATION = (Path(__file__).parents[1] / "amx_emulation.c")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whatever tests ran before in this process."""
    random.bit_generator.state = SEEDED


def drawn(*shape: int, dtype: DType = dtypes.float32) -> Tensor:
    return Tensor(random.standard_normal(shape, np.float32), device="CPU").cast(dtype).contiguous().realize()


def wide(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy().astype(np.float64)


class TileProducts(cpu_kernels.CpuTowerKernels):
    """The kernels as they are compiled for a processor with AMX, whose instructions are said in C here."""

    def _launch(self, kernel: str, *rest: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_kernels, "SOURCES", (EMULATION, *cpu_kernels.SOURCES))
            cpu_kernels._source.cache_clear()
            try:
                return super()._launch(kernel, *rest)
            finally:
                cpu_kernels._source.cache_clear()


def products(form: str, device: str) -> TowerOperations:
    plain = portable_towers(portable())
    kinds = {"portable": lambda: plain,
             "kernels": lambda: cpu_kernels.CpuTowerKernels(plain, device).operations(),
             "tile registers": lambda: TileProducts(plain, device).operations()}  # fmt: skip
    return kinds[form]()


def apart(found: Tensor, truth: np.ndarray) -> float:
    return float(np.abs(wide(found) - truth).max() / truth.std())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width", "inner"), [(1, 3, 5), (17, 70, 300), (800, 65, 33), (40, 64, 512)])
def test_linear(cpu: str, form: str, dtype: DType, rows: int, width: int, inner: int) -> None:
    x, w = drawn(rows, inner, dtype=dtype), drawn(width, inner, dtype=dtype)
    found = products(form, cpu).linear(x, DenseMatrix(w))
    assert found.dtype == dtype and found.shape == (rows, width)
    assert apart(found, wide(x) @ wide(w).T) < TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("count", "heads", "groups", "size", "seen"),
    [(5, 1, 1, 4, 5), (150, 3, 3, 24, 97), (200, 4, 2, 72, 200), (130, 2, 1, 100, 64)],
)
def test_attention(
    cpu: str, form: str, dtype: DType, count: int, heads: int, groups: int, size: int, seen: int
) -> None:
    q, k, v = (drawn(count, n, size, dtype=dtype) for n in (heads, groups, groups))
    real = np.zeros(count, np.bool_)
    real[random.permutation(count)[:seen]] = True
    found = products(form, cpu).attention(q, k, v, Tensor(real, device=cpu).contiguous().realize())
    keys, values = (np.repeat(wide(t)[real], heads // groups, 1) for t in (k, v))
    scores = np.einsum("qhd,khd->hqk", wide(q), keys)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    truth = np.einsum("hqk,khd->qhd", shares / shares.sum(-1, keepdims=True), values).reshape(count, -1)
    assert found.dtype == dtype and apart(found, truth) < TOLERANCE[dtype]


def test_large_scores_do_not_overflow(cpu: str) -> None:
    q, k, v = drawn(70, 1, 16) * 60, drawn(70, 1, 16) * 60, drawn(70, 1, 16)
    real = Tensor.ones(70, dtype=dtypes.bool, device=cpu).contiguous().realize()
    found = products("kernels", cpu).attention(q, k, v, real)
    assert np.isfinite(found.numpy()).all()
    nearest = (wide(q)[:, 0] @ wide(k)[:, 0].T).argmax(1)
    assert np.median(np.abs(wide(found) - wide(v)[nearest, 0])) < 1e-3


def test_which_form_is_taken(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_kernels.usable(cpu) and not cuda_matmul.usable(cpu)
    brought = registry.devices["cpu"].operations
    assert brought is not None
    assert tower_operations(brought(), cpu).name == "cpu"
    assert tower_operations(brought(), "PYTHON").name == tower_operations(portable(), cpu).name == "portable"
    monkeypatch.setenv("GEMMA4_KERNELS", "portable")
    assert tower_operations(brought(), cpu).name == "portable"


def test_a_device_of_ones_own_speeds_up_towers(cpu: str) -> None:
    """As a plugin would: a table with some operations replaced, the rest portable."""
    calls = []

    def linear(x: Tensor, matrix: DenseMatrix) -> Tensor:
        calls.append(x.shape)
        return x @ matrix.tensor.T

    def towers(operations: Operations, device: str) -> TowerOperations:
        assert device == cpu
        return replace(portable_towers(operations), name="own", linear=linear)

    vision = short("e2b-mm").towers["vision"]
    model = SimpleNamespace(config=short("e2b-mm").config, device=cpu, dtype=dtypes.float32,
                            operations=replace(portable(), towers=towers))  # fmt: skip
    parameters = vision.parameters()
    source: Any = SimpleNamespace(tensor=lambda name, device, dtype: parameters[name])
    own = registry.modalities["vision"].build(model, source)  # type: ignore[arg-type]
    media = load_multimodal("e2b-mm").cases["two_images"]
    features = {"pixel_values": media.pixel_values, "image_position_ids": media.image_position_ids}
    found = own.encode(features, capture=True)
    assert calls
    for tokens, expected in zip(found, vision.encode(features, capture=True), strict=True):
        assert apart(tokens, wide(expected)) < 1e-4


class Doubled(DenseMatrix):
    """A matrix of another kind, as an adapter brings one."""

    def matmul(self, x: Tensor) -> Tensor:
        return super().matmul(x) * 2


class Other:
    """No dense matrix at all."""

    def __init__(self, inner: DenseMatrix) -> None:
        self.inner, self.shape, self.dtype = inner, inner.shape, inner.dtype

    def matmul(self, x: Tensor) -> Tensor:
        return self.inner.matmul(x) * 3


@pytest.mark.parametrize("form", FORMS)
def test_other_matrices_keep_their_own_product(cpu: str, form: str) -> None:
    x, w = drawn(20, 8), drawn(6, 8)
    truth = wide(x) @ wide(w).T
    other: Any = Other(DenseMatrix(w))
    assert apart(products(form, cpu).linear(x, other), 3 * truth) < 1e-5
    assert apart(products(form, cpu).linear(x, Doubled(w)), 2 * truth) < 1e-5
