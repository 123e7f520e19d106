"""Kernels for processors that the towers use while nothing is differentiated: products of many rows, attention without
stored scores, and what lies between them. In C with the compiler's vector types, compiled by tinygrad's compiler for
this machine.

The code generator's own kernels reach 20 to 40 GFLOP/s here, these ten times as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, dtypes
from tinygrad.uop.ops import Ops

from gemma4_core.devices import machine
from gemma4_core.ops import Operations
from gemma4_core.ops.tower_table import Bounds, TowerOperations
from gemma4_core.ops.towers import portable_towers
from gemma4_core.weights import DenseMatrix, Matrix
from gemma4_plugins.devices.cpu.kernels import build
from gemma4_plugins.devices.source_kernels import beneath, launch
from gemma4_plugins.devices.tower_kernels import Given, TowerKernels, bound, kernel_name, limits, prepared

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


def tower_operations(operations: Operations, device: str) -> TowerOperations:
    """See ``gemma4_core.ops.Operations.towers``."""
    portable = portable_towers(operations)
    return CpuTowerKernels(portable, device).operations() if usable(device) else portable


class CpuTowerKernels(TowerKernels):
    """The kernels on this machine's processor."""

    def __init__(self, fallback: TowerOperations, device: str) -> None:
        super().__init__(fallback)
        self.target, self.parts = Device[device].renderer.target, machine.thread_count()

    def operations(self) -> TowerOperations:
        return TowerOperations(
            name="cpu", linear=self.linear, attention=self.attention, norm=self.norm, heads=self.heads,
            gated=self.gated, silu=self.silu, bounded=self.bounded,
        )  # fmt: skip

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        weight = matrix.parts()[""] if type(matrix) is DenseMatrix else None  # kinds derived from it have their own
        if weight is None or not self._serves(x, weight):
            return self.fallback.linear(x, matrix)
        rows, inner, width = int(x.shape[0]), int(x.shape[1]), matrix.shape[0]
        constants, inputs = {"M": rows, "N": width, "K": inner}, {"a": x, "w": weight}
        return self._launch("linear", constants, (rows, width), inputs, 2 * rows * width * inner)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        count, heads, size = (int(n) for n in q.shape)
        if not self._serves(q, k, v) or size > LARGEST_HEAD:
            return self.fallback.attention(q, k, v, real)
        constants = {"COUNT": count, "HEADS": heads, "KEY_HEADS": int(k.shape[1]), "SIZE": size}
        inputs, operations = {"q": q, "k": k, "v": v, "real": real}, 4 * count * count * heads * size
        return self._launch("attention", constants, (count, heads * size), inputs, operations)

    def bounded(self, x: Tensor, bounds: Bounds | None) -> Tensor:
        # what is computed on the way is bounded on the way
        held = beneath(x).op in (Ops.AFTER, Ops.CONTIGUOUS, Ops.BUFFER)
        if bounds is None or not held or not self._serves(x, *limits(bounds)):
            return self.fallback.bounded(x, bounds)
        define, inputs = bound("BOUND", bounds)
        count = math.prod(int(n) for n in x.shape)
        return self._launch("bounded", {"COUNT": count} | define, tuple(x.shape), {"x": x} | inputs, 2 * count)

    def silu(self, x: Tensor, bounds: Bounds | None, after: Bounds | None) -> Tensor:
        if not self._serves(x, *limits(bounds), *limits(after)):
            return self.fallback.silu(x, bounds, after)
        (define, inputs), (more, behind) = bound("BOUND_GATE", bounds), bound("BOUND_OUT", after)
        count = math.prod(int(n) for n in x.shape)
        constants, given = {"COUNT": count, "SILU": 1} | define | more, {"gate": x} | inputs | behind
        return self._launch("gated", constants, tuple(x.shape), given, 16 * count)

    def _serves(self, *tensors: Tensor | None) -> bool:
        kinds = {tensor.dtype for tensor in tensors if tensor is not None}
        return len(kinds) == 1 and kinds <= {dtypes.float32, dtypes.bfloat16}

    def _launch(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Given, operations: int
    ) -> Tensor:
        given = list(inputs.values())
        constants = dict(constants) | {"PARTS": self.parts, "BF16": int(given[0].dtype == dtypes.bfloat16)}
        name = kernel_name(kernel, constants, inputs)
        source = "".join(f"#define {define}\n" for define in build.tuning())
        source += prepared(name, constants, inputs, _source(f"{kernel}.c"))
        return launch(name, source, (shape, given[0].dtype), given, self.target, (self.parts, 1, 1), parts=self.parts,
                      operations=operations)
