"""Operations of towers as kernels in source form, put together alike for every device that has them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import Ops

from gemma4_core.ops.tower_table import Bounds, Rotation, TowerOperations

Given = Mapping[str, Tensor]
"""A kernel's inputs by the names of its parameters."""
TYPES = {dtypes.bfloat16: "u16", dtypes.bool: "u8", dtypes.float32: "float"}
"""As the sources call them."""


class TowerKernels(ABC):
    """Kernels for what they serve, ``fallback`` for the rest.

    A source takes sizes as macros, its parameters where INPUTS stands, and bounds as macros made of ``SCALAR(p)``,
    what a parameter points to, ``AT_LEAST(v, low)`` and ``AT_MOST(v, high)``."""

    def __init__(self, fallback: TowerOperations) -> None:
        self.fallback = fallback

    @abstractmethod
    def operations(self) -> TowerOperations:
        """These kernels as the table that a device brings."""

    @abstractmethod
    def _serves(self, *tensors: Tensor | None) -> bool:
        """Whether there are kernels for these types."""

    @abstractmethod
    def _launch(
        self, kernel: str, constants: Mapping[str, Any], shape: tuple[int, ...], inputs: Given, operations: int
    ) -> Tensor:
        """A kernel's output, of the first input's dtype."""

    def norm(
        self, x: Tensor, weight: Tensor, eps: float, bounds: Bounds | None = None, added: Tensor | None = None
    ) -> Tensor:
        if x.ndim != 2 or x.shape[1] % 2 or not self._serves(x, weight, added, *limits(bounds)):
            return self.fallback.norm(x, weight, eps, bounds, added)
        rows, width = (int(n) for n in x.shape)
        define, more = bound("BOUND", bounds)
        constants = {"COUNT": rows, "WIDTH": width, "ADDED": int(added is not None), "EPS": number(eps)} | define
        inputs = {"x": x, "weight": weight} | more | ({} if added is None else {"h": added})
        return self._launch("norm", constants, (rows, width), inputs, 4 * rows * width)

    def heads(
        self, x: Tensor, size: int, weight: Tensor | None, eps: float, bounds: Bounds | None, rotation: Rotation | None
    ) -> Tensor:
        angles = rotation or ()
        wide = all(tensor.dtype == dtypes.float32 for tensor in angles)
        if size % 4 or not wide or not self._serves(x, weight, *limits(bounds)):
            return self.fallback.heads(x, size, weight, eps, bounds, rotation)
        rows, heads = int(x.shape[0]), int(x.shape[1]) // size
        define, more = bound("BOUND", bounds)
        flags = {"WEIGHTED": int(weight is not None), "TURNED": int(rotation is not None)}
        constants = {"COUNT": rows, "HEADS": heads, "SIZE": size, **flags, "EPS": number(eps)} | define
        inputs = {"x": x} | more | ({} if weight is None else {"weight": weight})
        inputs |= dict(zip(("cos", "sin"), angles, strict=False))
        return self._launch("heads", constants, (rows, heads, size), inputs, 8 * rows * heads * size)

    def gated(
        self, gate: Tensor, up: Tensor, gate_bounds: Bounds | None, up_bounds: Bounds | None, bounds: Bounds | None
    ) -> Tensor:
        rows, width = (int(n) for n in gate.shape)
        tensors = [tensor for given in (gate_bounds, up_bounds, bounds) for tensor in limits(given)]
        if rows * width % 8 or not self._serves(gate, up, *tensors):
            return self.fallback.gated(gate, up, gate_bounds, up_bounds, bounds)
        constants: dict[str, Any] = {"COUNT": rows * width}
        inputs = {"gate": gate, "up": up}
        for name, given in (("BOUND_GATE", gate_bounds), ("BOUND_UP", up_bounds), ("BOUND_OUT", bounds)):
            define, more = bound(name, given)
            constants |= define
            inputs |= more
        return self._launch("gated", constants, (rows, width), inputs, 16 * rows * width)


def limits(bounds: Bounds | None) -> list[Tensor]:
    """Those of the bounds that a kernel reads from memory."""
    return [value for value in bounds or () if isinstance(value, Tensor) and value.uop.base.op is not Ops.CONST]


def number(value: Any) -> str:
    """As C has it."""
    return f"{float(value)!r}f"


def bound(name: str, bounds: Bounds | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What bounds a value in a kernel as a macro, and the tensors that it reads."""
    inputs, macro = {}, "(v)"
    for function, value in zip(("AT_LEAST", "AT_MOST"), bounds or (), strict=False):
        if isinstance(value, Tensor) and value.uop.base.op is not Ops.CONST:
            inputs[parameter := f"{name}_{function}".lower()] = value.reshape(1)  # [] -> [1]
            macro = f"{function}({macro}, SCALAR({parameter}))"
        elif math.isfinite(constant := value.uop.base.arg if isinstance(value, Tensor) else value):
            macro = f"{function}({macro}, {number(constant)})"
    return {f"{name}(v)": macro}, inputs


def prepared(name: str, constants: Mapping[str, Any], inputs: Given, body: str) -> str:
    """A kernel's source with its macros, and its parameters by name and type."""
    lines = "".join(f"#define {key} {value}\n" for key, value in ({"NAME": name} | dict(constants)).items())
    parameters = ", ".join(f"const {TYPES[tensor.dtype]} *__restrict__ {key}" for key, tensor in inputs.items())
    return lines + body.replace("INPUTS", parameters)


def kernel_name(kernel: str, constants: Mapping[str, Any], inputs: Given) -> str:
    """Whole numbers and inputs tell kernels apart."""
    return "_".join(["tower", kernel, *(str(v) for v in constants.values() if isinstance(v, int)), str(len(inputs))])
