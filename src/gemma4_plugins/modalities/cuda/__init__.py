"""Kernels for NVIDIA GPUs that the towers use while nothing is differentiated: products of many rows, attention without
stored scores, and norms, in bf16. Everything else, other types, sizes and devices, takes the portable form.

The code generator's own kernels reach 30 TFLOP/s here, these about ten times as much.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, dtypes

from gemma4_core.ops import Operations
from gemma4_core.ops.portable import rms_norm
from gemma4_core.weights import DenseMatrix, Matrix
from gemma4_plugins.kernels.cuda.matmul import matmul
from gemma4_plugins.kernels.launching import launch
from gemma4_plugins.modalities.products import Products

LARGEST_HEAD = 80
"""Two tiles of keys and of values of this size fill the shared memory that needs no permission."""


@lru_cache
def _source(name: str) -> str:
    folder = Path(__file__).parent
    return (folder / "matrix.cu").read_text() + (folder / name).read_text()


class CudaProducts(Products):
    """The kernels on one device."""

    def __init__(self, ops: Operations, device: str) -> None:
        super().__init__(ops)
        self.target = Device[device].renderer.target

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        made = matmul(x, matrix.tensor, "nt") if type(matrix) is DenseMatrix else None
        return super().linear(x, matrix) if made is None else made

    def attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        count, heads, size = (int(n) for n in q.shape)
        if not self._fits(q) or count % 64 or size % 8 or size > LARGEST_HEAD:
            return super().attend(q, k, v, real)
        constants = {"COUNT": count, "HEADS": heads, "KEY_HEADS": int(k.shape[1]), "SIZE": size}
        inputs, grid = (q, k, v, real), (count // 64, heads, 1)
        operations = 4 * count * count * heads * size
        return self._launch("attention", constants, (count, heads * size), inputs, grid, 128, operations)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.ndim != 2 or not self._fits(x) or not self._fits(weight) or x.shape[1] % 2:
            return rms_norm(x, weight, eps)
        rows, width = (int(n) for n in x.shape)
        constants = {"ROWS": rows, "WIDTH": width, "EPS": f"{eps!r}f"}
        return self._launch("norm", constants, (rows, width), (x, weight), (-(-rows // 4), 1, 1), 128, 4 * rows * width)

    @staticmethod
    def _fits(x: Tensor) -> bool:
        return x.dtype == dtypes.bfloat16

    def _launch(
        self, kernel: str, constants: dict[str, Any], shape: tuple[int, ...], inputs: tuple[Tensor, ...],
        grid: tuple[int, int, int], threads: int, operations: int,
    ) -> Tensor:
        name = "_".join(["tower", kernel, *(str(v) for v in constants.values() if isinstance(v, int))])
        defines = "".join(f"#define {key} {value}\n" for key, value in ({"NAME": name} | constants).items())
        out = (shape, dtypes.bfloat16)
        return launch(name, defines + _source(f"{kernel}.cu"), out, inputs, self.target, grid, (threads, 1, 1),
                      operations=operations)
