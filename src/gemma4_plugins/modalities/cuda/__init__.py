"""Kernels for NVIDIA GPUs that the towers use while nothing is differentiated: products of many rows, attention without
stored scores, and what lies between them, in bf16. Everything else, other types, sizes and devices, takes the portable
form.

The code generator's own kernels reach 30 TFLOP/s here, these ten times as much and more; between products a kernel of
its own takes a third to a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, dtypes
from tinygrad.uop.ops import Ops

from gemma4_core.ops import Operations
from gemma4_core.weights import DenseMatrix, Matrix
from gemma4_plugins.kernels.cuda.matmul import matmul
from gemma4_plugins.kernels.cuda.sources import device_source
from gemma4_plugins.kernels.launching import launch
from gemma4_plugins.modalities.bounds import Bounds
from gemma4_plugins.modalities.products import Products, Rotation

LARGEST_HEAD = 80
"""Two tiles of keys and of values of this size fill the shared memory that needs no permission."""
TYPES = {dtypes.bfloat16: "u16", dtypes.bool: "u8", dtypes.float32: "float"}


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
        if not _fits(q, k, v) or count % 64 or size % 8 or size > LARGEST_HEAD:
            return super().attend(q, k, v, real)
        constants = {"COUNT": count, "HEADS": heads, "KEY_HEADS": int(k.shape[1]), "SIZE": size}
        inputs = {"q": q, "k": k, "v": v, "real": real}
        grid, operations = (count // 64, heads), 4 * count * count * heads * size
        return self._launch("attention", constants, (count, heads * size), inputs, grid, 128, operations)

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, bounds: Bounds | None = None, added: Tensor | None = None
    ) -> Tensor:
        if x.ndim != 2 or x.shape[1] % 2 or not _fits(x, weight, *([] if added is None else [added])):
            return super().norm(x, weight, eps, bounds, added)
        rows, width = (int(n) for n in x.shape)
        define, inputs = bound("BOUND", bounds)
        constants = {"ROWS": rows, "WIDTH": width, "ADDED": int(added is not None), "EPS": f"{eps!r}f"} | define
        inputs = {"x": x, "weight": weight} | inputs | ({} if added is None else {"h": added})
        return self._launch("norm", constants, (rows, width), inputs, (-(-rows // 4), 1), 128, 4 * rows * width)

    def heads(
        self, x: Tensor, size: int, weight: Tensor | None, eps: float, bounds: Bounds | None, turn: Rotation | None
    ) -> Tensor:
        if size % 4 or not _fits(x, *([] if weight is None else [weight])):
            return super().heads(x, size, weight, eps, bounds, turn)
        rows, heads = int(x.shape[0]), int(x.shape[1]) // size
        define, inputs = bound("BOUND", bounds)
        flags = {"WEIGHTED": int(weight is not None), "TURNED": int(turn is not None)}
        constants = {"ROWS": rows, "HEADS": heads, "SIZE": size, **flags, "EPS": f"{eps!r}f"} | define
        inputs = {"x": x} | inputs
        inputs |= {} if weight is None else {"weight": weight}
        inputs |= {} if turn is None else {"cos": turn[0], "sin": turn[1]}
        blocks = -(-rows * heads // 4)
        return self._launch("heads", constants, (rows, heads, size), inputs, (blocks, 1), 128, 8 * rows * heads * size)

    def gated(
        self, gate: Tensor, up: Tensor, gate_bounds: Bounds | None, up_bounds: Bounds | None, bounds: Bounds | None
    ) -> Tensor:
        rows, width = (int(n) for n in gate.shape)
        if rows * width % 8 or not _fits(gate, up):
            return super().gated(gate, up, gate_bounds, up_bounds, bounds)
        constants: dict[str, Any] = {"COUNT": rows * width}
        inputs = {"gate": gate, "up": up}
        for name, given in (("BOUND_GATE", gate_bounds), ("BOUND_UP", up_bounds), ("BOUND_OUT", bounds)):
            define, more = bound(name, given)
            constants |= define
            inputs |= more
        blocks = -(-rows * width // 2048)
        return self._launch("gated", constants, (rows, width), inputs, (blocks, 1), 256, 16 * rows * width)

    def _launch(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Mapping[str, Tensor],
        grid: tuple[int, int], threads: int, operations: int,
    ) -> Tensor:
        name, source = tower_kernel(kernel, constants, inputs)
        return launch(name, device_source(source), (shape, dtypes.bfloat16), list(inputs.values()), self.target,
                      (*grid, 1), (threads, 1, 1), operations=operations)


def bound(name: str, bounds: Bounds | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What bounds a value in a kernel as a macro, and the tensors that it reads."""
    if bounds is None:
        return {f"{name}(v)": "(v)"}, {}
    inputs, limits = {}, []
    for end, value in zip(("low", "high"), bounds, strict=True):
        if isinstance(value, Tensor) and value.uop.base.op is not Ops.CONST:
            inputs[parameter := f"{name.lower()}_{end}"] = value.reshape(1)  # [] -> [1]
            limits.append(f"low_bf16({parameter}[0])")
        else:
            limits.append(f"{float(value.uop.base.arg if isinstance(value, Tensor) else value)!r}f")
    return {f"{name}(v)": f"fminf(fmaxf(v, {limits[0]}), {limits[1]})"}, inputs


def tower_kernel(kernel: str, constants: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> tuple[str, str]:
    """Name and source of a kernel, but for the instruction set. Whole numbers and inputs make the name."""
    numbers = [str(v) for v in constants.values() if isinstance(v, int)]
    name = "_".join(["tower", kernel, *numbers, str(len(inputs))])
    lines = "".join(f"#define {key} {value}\n" for key, value in ({"NAME": name} | dict(constants)).items())
    parameters = ", ".join(f"const {TYPES[tensor.dtype]}* __restrict__ {key}" for key, tensor in inputs.items())
    body = (Path(__file__).parent / f"{kernel}.cu").read_text(encoding="utf-8")
    return name, lines + body.replace("INPUTS", parameters)


def _fits(*tensors: Tensor) -> bool:
    return all(tensor.dtype == dtypes.bfloat16 for tensor in tensors)
