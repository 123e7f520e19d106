"""Operations of training over a device's kernels: gradients against the portable forms, with kernels that stand in."""

from __future__ import annotations

import numpy as np
import pytest
from tinygrad import Tensor, dtypes

from gemma4_core.ops import portable
from gemma4_core.ops.differentiable import training_operations
from gemma4_core.ops.fused import Fused

pytestmark = pytest.mark.usefixtures("cpu")


def draw(seed: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).realize()


def agree(found: list[Tensor], truths: list[Tensor], limit: float = 1e-5) -> None:
    for one, truth in zip(found, truths, strict=True):
        truth_values = truth.numpy()
        assert one.shape == truth.shape and np.abs(truth_values).max() > 0
        assert np.abs(one.numpy() - truth_values).max() < limit * np.abs(truth_values).max()


def root(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def norm_gradient(x: Tensor, weight: Tensor | None, eps: float, dy: Tensor) -> Tensor:
    r, d = root(x, eps), dy if weight is None else dy * weight
    return (r * (d - x * (d * x).mean(-1, keepdim=True) * r * r)).contiguous()


def norm_weight_gradient(x: Tensor, eps: float, dy: Tensor) -> Tensor:
    return (dy * x * root(x, eps)).reshape(-1, x.shape[-1]).sum(0)


NORMS = Fused(
    rms_norm=lambda x, weight, eps: portable().rms_norm(x, weight, eps).contiguous() if x.shape[-1] % 8 == 0 else None,
    rms_norm_gradient=norm_gradient, rms_norm_weight_gradient=norm_weight_gradient,
)  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [16, 12])
def test_norms(weighted: bool, size: int) -> None:
    x, dy, weight = draw(0, 2, 3, size), draw(1, 2, 3, size), draw(2, size) if weighted else None
    results = []
    for operations in (training_operations(None, (), NORMS), portable()):
        made = operations.rms_norm(x, weight, 1e-6)
        wanted = [x] if weight is None else [x, weight]
        results.append([made, *(made * dy).sum().gradient(*wanted)])
    agree(*results)
    assert results[0][0].dtype == dtypes.float32
