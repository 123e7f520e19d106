"""Products of matrices with low-rank changes beside them, and their gradients, with a device's kernels and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from stand_ins import ADAPTED, calls, matmul, scaled_product, scaled_two_products, thin, two_products
from tinygrad import Tensor, dtypes

from gemma4_core.ops import portable
from gemma4_core.ops.differentiable import differentiable_operations, training_operations
from gemma4_core.ops.dropout import Dropout, dropping
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
    dropout: Dropout | None = None


class Adapted(DenseMatrix):
    """A matrix that is computed with its changes beside it."""

    def __init__(self, base: Matrix, changes: Sequence[LowRankChange]) -> None:
        self.base, self.changes, self.shape, self.dtype = base, changes, base.shape, base.dtype

    def adapted(self) -> tuple[Matrix, Sequence[LowRankChange]]:
        return self.base, self.changes


KERNELS = {
    "none": NONE, "all": ADAPTED, "no thin": Fused(two_products=two_products),
    "thin alone": Fused(thin=thin), "refusing": Fused(two_products=lambda *_: None, thin=lambda *_: None),
    "packed": Fused(two_products=two_products, thin=thin, scaled_product=scaled_product,
                    scaled_two_products=scaled_two_products),
}


@pytest.mark.parametrize(
    ("kernels", "base"),
    [pytest.param(name, base, marks=[] if name in ("none", "all", "packed") else pytest.mark.slow)
     for name, base in (*product([*KERNELS][:-1], ["dense", "int8"]), ("packed", "int8"))],
)  # fmt: skip
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
    fused = kernels in ("all", "no thin", "packed") and len(ranks) == 1
    assert ("two nt" in calls and "two nn" in calls) == fused
    packed = kernels == "packed" and base == "int8"
    assert {f"packed{' two' * fused} {form}" for form in ("nt", "nn")} <= {*calls} if packed else \
        not [call for call in calls if call.startswith("packed")]
    assert "nt" in calls or fused or packed  # the base's product is the device's all the same


def mixed(x: np.ndarray) -> np.ndarray:
    """``gemma4_core.ops.dropout.mixed``."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def kept(dropout: Dropout, *shape: int) -> np.ndarray:
    """1 where numbers are not dropped."""
    salt = mixed(dropout.step.numpy() + mixed(dropout.place.numpy()))
    found = mixed(np.arange(np.prod(shape), dtype=np.uint32) ^ salt) >= round(dropout.p * 2**32)
    return found.reshape(shape).astype(np.float64)


@pytest.mark.parametrize("kernels", ["none", "all", "thin alone"])
def test_dropout_of_a_change(kernels: str) -> None:
    random, rows, inner, outer, rank = np.random.default_rng(3), 24, 32, 48, 4
    x, dy, w, a, b = (random.standard_normal(shape).astype(np.float32) for shape in
                      ((rows, inner), (rows, outer), (outer, inner), (rank, inner), (outer, rank)))
    dropout = Dropout.of(0.25, Dropout.counter("CPU"), "a matrix")
    change, tx = Change(Tensor(a).realize(), Tensor(b).realize(), 2.0, dropout), Tensor(x).realize()
    operations, matrix = training_operations(matmul, (), KERNELS[kernels]), Adapted(DenseMatrix(Tensor(w)), [change])
    masks = []
    for step in (0, 1):
        Dropout.begin(dropout.step, 7, step, 0)
        masks.append(mask := kept(dropout, rows, inner) / 0.75)
        with dropping():
            found = operations.linear(tx, matrix)
            slopes = (found * Tensor(dy)).sum().gradient(tx, change.a, change.b)
        inside = x * mask
        truths = [x @ w.T + 2 * inside @ a.T @ b.T, dy @ w + 2 * (dy @ b @ a) * mask,
                  2 * (dy @ b).T @ inside, 2 * dy.T @ (inside @ a.T)]
        for one, truth in zip([found, *slopes], truths, strict=True):
            assert np.abs(one.numpy() - truth).max() < 1e-5 * np.abs(truth).max()
    assert 0.65 < (masks[0] > 0).mean() < 0.85 and 0.3 < ((masks[0] > 0) != (masks[1] > 0)).mean() < 0.45
    assert np.abs(operations.linear(tx, matrix).numpy() - x @ (w + 2 * b @ a).T).max() < 1e-4  # off elsewhere


def test_what_drops_is_drawn_from_seed_step_batch_and_name() -> None:
    step = Dropout.counter("CPU")
    one, other = (Dropout.of(0.5, step, name) for name in ("one", "other"))
    drawn = []
    for at in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        Dropout.begin(step, *at)
        drawn.append(kept(one, 4096))
    assert np.array_equal(drawn[0], drawn[4])
    for two in (*drawn[1:4], kept(other, 4096)):
        assert 0.45 < (two != drawn[0]).mean() < 0.55
    with dropping():
        x = Tensor.ones(64, 64).contiguous()
        assert np.array_equal(one(x).numpy().ravel(), 2 * drawn[0])
    assert one(x) is x


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
