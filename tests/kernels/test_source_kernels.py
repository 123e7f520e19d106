"""Kernels in source form as operations on tensors: what is copied on the way to one, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tinygrad import Device, Tensor, dtypes
from tinygrad.helpers import GlobalCounters

from gemma4_plugins.devices.source_kernels import launch


def plus_one(name: str, x: Tensor, shape: tuple[int, ...] = (6,)) -> Tensor:
    source = f"void {name}(float* out, float* x, int core_id) {{ for (int i = 0; i < 6; i++) out[i] = x[i] + 1; }}"
    target = Device[str(x.device)].renderer.target
    return launch(name, source, (shape, dtypes.float32), (x,), target, (1, 1, 1), parts=1)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "one after the other": (lambda x: plus_one("b", plus_one("a", x)), 2),
    "a reshaped input": (lambda x: plus_one("a", x.reshape(3, 2)), 1),
    "a reshaped result": (lambda x: plus_one("b", plus_one("a", x, (1, 2, 3)).reshape(2, 3)), 2),
    "wanted in memory": (lambda x: plus_one("b", plus_one("a", x).reshape(2, 3).contiguous()), 2),
    "an expression": (lambda x: plus_one("b", (plus_one("a", x).reshape(2, 3) + 0.5).contiguous().reshape(6)), 3),
    "other order": (lambda x: plus_one("b", plus_one("a", x, (2, 3)).transpose(0, 1)), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_lies_otherwise_is_copied(cpu: str, case: str) -> None:
    function, kernels = CASES[case]
    x = Tensor(np.arange(6, dtype=np.float32), device=cpu).realize()
    GlobalCounters.reset()
    found = function(x).realize()
    assert GlobalCounters.kernel_count == kernels
    expected = np.arange(6.0) + (1 if kernels == 1 else 2.5 if case == "an expression" else 2)
    if case == "other order":
        expected = expected.reshape(2, 3).T.reshape(-1)
    assert np.array_equal(found.numpy().reshape(-1), expected)
