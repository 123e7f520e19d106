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
from gemma4_plugins.modalities.launching import launch
from gemma4_plugins.modalities.products import Products

LEAST_ARCH = 80
"""Ampere: the first with bf16 matrix units and asynchronous copies."""
FULL_CARD = 132
"""Blocks below which smaller tiles are taken, so that every multiprocessor has one."""
LARGEST_HEAD = 80
"""Two tiles of keys and of values of this size fill the shared memory that needs no permission."""
LARGE, SMALL = (128, 128, 2, 4), (64, 64, 2, 2)
"""Rows and columns of a tile, and of its grid of warps."""


@lru_cache
def _source(name: str) -> str:
    folder = Path(__file__).parent
    return (folder / "matrix.cu").read_text() + (folder / name).read_text()


def usable(device: str) -> bool:
    """Whether this is an NVIDIA GPU that the kernels were written for."""
    if not device.startswith("CUDA"):
        return False
    arch = str(Device[device].renderer.target.arch)
    return arch.startswith("sm_") and arch[3:].rstrip("af").isdigit() and int(arch[3:].rstrip("af")) >= LEAST_ARCH


class CudaProducts(Products):
    """The kernels on one device."""

    def __init__(self, ops: Operations, device: str) -> None:
        super().__init__(ops)
        self.target = Device[device].renderer.target

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        rows, inner = (int(n) for n in x.shape)
        width = matrix.shape[0]
        known = type(matrix) is DenseMatrix and self._fits(x) and self._fits(matrix.tensor)
        if not known or inner % 8 or width % 2:
            return super().linear(x, matrix)
        assert isinstance(matrix, DenseMatrix)
        blocks = lambda tile: -(-width // tile[1]) * -(-rows // tile[0])  # noqa: E731
        tile = LARGE if blocks(LARGE) >= FULL_CARD // 2 else SMALL
        constants = {"M": rows, "N": width, "K": inner} | dict(
            zip(("TILE_M", "TILE_N", "WARPS_M", "WARPS_N"), tile, strict=True)
        )
        grid = (-(-width // tile[1]), -(-rows // tile[0]), 1)
        threads, operations = 32 * tile[2] * tile[3], 2 * rows * width * inner
        return self._launch("linear", constants, (rows, width), (x, matrix.tensor), grid, threads, operations)

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
