"""Kernels for processors that the towers use while nothing is differentiated: products of many rows, and attention
without stored scores. In C with the compiler's vector types, compiled by tinygrad's own compiler for this machine.

The code generator's own kernels reach 20 to 40 GFLOP/s here, these ten times as much.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, dtypes

from gemma4_core import machine
from gemma4_core.ops import Operations
from gemma4_core.weights import DenseMatrix, Matrix
from gemma4_plugins.kernels.cpu import build
from gemma4_plugins.kernels.launching import launch
from gemma4_plugins.modalities.products import Products

LARGEST_HEAD = 256
"""A job's buffers lie on the stack."""


HERE = Path(__file__).parent
SOURCES = (HERE / "tiles.c", build.HERE / "transpose.c", build.HERE / "amx.c", HERE / "pairs.c")
"""What the kernels are made of, before their own."""


@lru_cache
def _source(name: str) -> str:
    return "".join(file.read_text() for file in (*SOURCES, HERE / name))


def usable(device: str) -> bool:
    """Whether this is tinygrad's CPU device with its C renderer."""
    return device.split(":")[0] == "CPU" and type(Device[device].renderer).__name__ == "ClangRenderer"


class CpuProducts(Products):
    """The kernels on this machine's processor."""

    def __init__(self, ops: Operations, device: str) -> None:
        super().__init__(ops)
        self.target, self.parts = Device[device].renderer.target, machine.thread_count()

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        weight = matrix.parts()[""] if type(matrix) is DenseMatrix else None  # kinds derived from it have their own
        if weight is None or weight.dtype != x.dtype or x.dtype not in (dtypes.float32, dtypes.bfloat16):
            return super().linear(x, matrix)
        rows, inner, width = int(x.shape[0]), int(x.shape[1]), matrix.shape[0]
        constants = {"M": rows, "N": width, "K": inner}
        return self._launch("linear", constants, (rows, width), (x, weight), 2 * rows * width * inner)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        count, heads, size = (int(n) for n in q.shape)
        if q.dtype not in (dtypes.float32, dtypes.bfloat16) or size > LARGEST_HEAD:
            return super().attend(q, k, v, real)
        constants = {"COUNT": count, "HEADS": heads, "KEY_HEADS": int(k.shape[1]), "SIZE": size}
        operations = 4 * count * count * heads * size
        return self._launch("attention", constants, (count, heads * size), (q, k, v, real), operations)

    def _launch(
        self, kernel: str, constants: dict[str, Any], shape: tuple[int, ...], inputs: tuple[Tensor, ...],
        operations: int,
    ) -> Tensor:
        narrow = inputs[0].dtype == dtypes.bfloat16
        constants = constants | {"PARTS": self.parts, "BF16": int(narrow)}
        name = "_".join(["tower", kernel, *map(str, constants.values())])
        defines = "".join(f"#define {key} {value}\n" for key, value in ({"NAME": name} | constants).items())
        defines += "".join(f"#define {define}\n" for define in build.tuning())
        out = (shape, inputs[0].dtype)
        return launch(name, defines + _source(f"{kernel}.c"), out, inputs, self.target, (self.parts, 1, 1),
                      parts=self.parts, operations=operations)
