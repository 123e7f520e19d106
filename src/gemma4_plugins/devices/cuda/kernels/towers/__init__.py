"""Kernels for NVIDIA GPUs that the towers use while nothing is differentiated: products of many rows, attention without
stored scores, and what lies between them, in bf16. Everything else, other types, sizes and devices, takes the portable
form.

The code generator's own kernels reach 30 TFLOP/s here, these ten times as much and more; between products a kernel of
its own takes a third to a tenth of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, dtypes

from gemma4_core.ops import Operations
from gemma4_core.ops.tower_table import TowerOperations
from gemma4_core.ops.towers import portable_towers
from gemma4_core.weights import DenseMatrix, Matrix
from gemma4_plugins.devices.cuda.kernels.matmul import matmul, usable
from gemma4_plugins.devices.cuda.kernels.sources import device_source
from gemma4_plugins.devices.source_kernels import launch
from gemma4_plugins.devices.tower_kernels import Given, TowerKernels, kernel_name, prepared

LARGEST_HEAD = 80
"""Two tiles of keys and of values of this size fill the shared memory that needs no permission."""
BLOCKS = {"norm": (4, 128), "heads": (4, 128), "gated": (2048, 256)}
"""Rows, heads or values of a block, and its threads."""
LIMITS = """#define SCALAR(p) low_bf16(p[0])
DEVICE float AT_LEAST(float v, float low) { return v < low ? low : v; }  // NaN stays NaN
DEVICE float AT_MOST(float v, float high) { return v > high ? high : v; }
"""


def tower_operations(operations: Operations, device: str) -> TowerOperations:
    """See ``gemma4_core.ops.Operations.towers``."""
    portable = portable_towers(operations)
    return CudaTowerKernels(portable, device).operations() if usable(device) else portable


class CudaTowerKernels(TowerKernels):
    """The kernels on one device."""

    def __init__(self, fallback: TowerOperations, device: str) -> None:
        super().__init__(fallback)
        self.target = Device[device].renderer.target

    def operations(self) -> TowerOperations:
        return replace(
            self.fallback, name="cuda", linear=self.linear, attention=self.attention, norm=self.norm,
            heads=self.heads, gated=self.gated,
        )  # fmt: skip

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        made = matmul(x, matrix.tensor, "nt") if type(matrix) is DenseMatrix else None
        return self.fallback.linear(x, matrix) if made is None else made

    def attention(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        count, heads, size = (int(n) for n in q.shape)
        if not self._serves(q, k, v) or count % 64 or size % 8 or size > LARGEST_HEAD:
            return self.fallback.attention(q, k, v, real)
        constants = {"COUNT": count, "HEADS": heads, "KEY_HEADS": int(k.shape[1]), "SIZE": size}
        inputs = {"q": q, "k": k, "v": v, "real": real}
        operations = 4 * count * count * heads * size
        return self._run("attention", constants, (count, heads * size), inputs, (count // 64, heads), 128, operations)

    def _serves(self, *tensors: Tensor | None) -> bool:
        return all(tensor is None or tensor.dtype == dtypes.bfloat16 for tensor in tensors)

    def _launch(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Given, operations: int
    ) -> Tensor:
        each, threads = BLOCKS[kernel]
        jobs = math.prod(shape if kernel == "gated" else shape[:-1])
        return self._run(kernel, constants, shape, inputs, (-(-jobs // each), 1), threads, operations)

    def _run(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Given, grid: tuple[int, int],
        threads: int, operations: int,
    ) -> Tensor:
        name, source = tower_kernel(kernel, constants, inputs)
        return launch(name, device_source(source), (shape, dtypes.bfloat16), list(inputs.values()), self.target,
                      (*grid, 1), (threads, 1, 1), operations=operations)


def tower_kernel(kernel: str, constants: Mapping[str, Any], inputs: Given) -> tuple[str, str]:
    """Name and source of a kernel, but for the instruction set."""
    name = kernel_name(kernel, constants, inputs)
    return name, LIMITS + prepared(name, constants, inputs, _source(f"{kernel}.cu"))


@lru_cache
def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
