"""Products of matrices with low-rank changes beside them, and their gradients, with a device's kernels and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from stand_ins import ADAPTED, calls, matmul, thin, two_products
from tinygrad import Tensor, dtypes

from gemma4_core.ops import portable
from gemma4_core.ops.differentiable import differentiable_operations, training_operations
from gemma4_core.ops.fused import NONE, Fused
from gemma4_core.ops.multiply import made
from gemma4_core.weights import DenseMatrix, LowRankChange, Matrix
from gemma4_plugins.layouts.int8 import Int8Matrix

pytestmark = pytest.mark.usefixtures("cpu")


@dataclass(frozen=True, eq=False)
class Change:
    a: Tensor
    b: Tensor
    scale: float


class Adapted(DenseMatrix):
    """A matrix that is computed with its changes beside it."""

    def __init__(self, base: Matrix, changes: Sequence[LowRankChange]) -> None:
        self.base, self.changes, self.shape, self.dtype = base, changes, base.shape, base.dtype

    def adapted(self) -> tuple[Matrix, Sequence[LowRankChange]]:
        return self.base, self.changes


KERNELS = {
    "none": NONE, "all": ADAPTED, "no thin": Fused(two_products=two_products),
    "thin alone": Fused(thin=thin), "refusing": Fused(two_products=lambda *_: None, thin=lambda *_: None),
}


@pytest.mark.parametrize(
    "kernels", [pytest.param(name, marks=[] if name in ("none", "all") else pytest.mark.slow) for name in KERNELS]
)
@pytest.mark.parametrize("base", ["dense", "int8"])
@pytest.mark.parametrize("ranks", [(3,), (16,), (4, 17)])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.bfloat16])
def test_results_and_gradients(kernels: str, base: str, ranks: tuple[int, ...], dtype: object) -> None:
    random, limit = np.random.default_rng(len(ranks)), 1e-5 if dtype == dtypes.float32 else 2e-2
    rows, inner, outer, scales = 24, 32, 48, (2.0, 0.5)

    def draw(*shape: int, exact: bool = False) -> tuple[np.ndarray, Tensor]:
        tensor = Tensor(random.standard_normal(shape).astype(np.float32))
        tensor = (tensor if exact else tensor.cast(dtype)).realize()  # type: ignore[arg-type]
        return tensor.float().numpy().astype(np.float64), tensor

    (x, tx), (dy, tdy), (w, tw) = draw(2, rows // 2, inner), draw(2, rows // 2, outer), draw(outer, inner)
    held: Matrix = DenseMatrix(tw)
    if base == "int8":
        numbers, scale = random.integers(-9, 9, (outer, inner)), random.uniform(0.1, 0.2, outer).astype(np.float32)
        held, w = Int8Matrix(Tensor(numbers.astype(np.int8)), Tensor(scale), dtype), numbers * scale[:, None]  # type: ignore[arg-type]
    pairs = [(draw(r, inner, exact=True), draw(outer, r, exact=True), s) for r, s in zip(ranks, scales, strict=False)]
    changes = [Change(a, b, s) for (_, a), (_, b), s in pairs]
    calls.clear()
    operations = training_operations(matmul, (), KERNELS[kernels])
    found = operations.linear(tx, Adapted(held, changes))
    wanted = [tx, *(t for change in changes for t in (change.a, change.b))]
    slopes = (found.float() * tdy.float()).sum().gradient(*wanted)
    whole = w + sum(s * b @ a for (a, _), (b, _), s in pairs)
    flat_x, flat_dy = x.reshape(-1, inner), dy.reshape(-1, outer)
    truths = [x @ whole.T, dy @ whole]
    for (a, _), (b, _), s in pairs:
        truths += [s * (flat_dy @ b).T @ flat_x, s * flat_dy.T @ (flat_x @ a.T)]
    for one, truth in zip([found, *slopes], truths, strict=True):
        assert np.abs(one.float().numpy() - truth).max() < limit * np.abs(truth).max()
    assert all(slope.dtype == dtypes.float32 for slope in slopes[1:])
    fused = kernels in ("all", "no thin") and len(ranks) == 1
    assert ("two nt" in calls and "two nn" in calls) == fused
    assert "nt" in calls or fused  # the base's product is the device's all the same


def test_a_packed_matrix_is_unpacked_for_each_use() -> None:
    """So that nothing unpacked is kept from the forward pass to the backward pass."""
    random = np.random.default_rng(5)
    numbers, scale = random.integers(-9, 9, (16, 8)).astype(np.int8), random.uniform(0.1, 0.2, 16).astype(np.float32)
    matrix = Int8Matrix(Tensor(numbers).realize(), Tensor(scale).realize(), dtypes.float32)
    x, read = Tensor(random.standard_normal((4, 8)).astype(np.float32)).realize(), []

    def noting(a: Tensor, b: Tensor, form: str, wide: bool = False) -> Tensor:
        read.append((form, b.uop))
        return made(None, a, b, form, wide)

    found = training_operations(noting).linear(x, matrix)
    (slope,) = found.square().sum().gradient(x)
    w = numbers * scale[:, None].astype(np.float64)
    truth = x.numpy().astype(np.float64) @ w.T
    assert np.abs(found.numpy() - truth).max() < 1e-5 * np.abs(truth).max()
    assert np.abs(slope.numpy() - 2 * truth @ w).max() < 1e-5 * np.abs(truth @ w).max() * 2
    forward, backward = ({uop for kind, uop in read if kind == form} for form in ("nt", "nn"))
    assert forward and backward and not forward & backward


def test_operations_that_somebody_replaced_get_the_adapted_matrix() -> None:
    from dataclasses import replace

    taken: list[Matrix] = []

    def linear(x: Tensor, matrix: Matrix) -> Tensor:
        taken.append(matrix)
        return x

    table = replace(portable(), linear=linear, fused=KERNELS["all"])
    adapted = Adapted(DenseMatrix(Tensor.zeros(4, 4)), ())
    differentiable_operations(table).linear(Tensor.zeros(2, 4), adapted)
    assert taken == [adapted]
