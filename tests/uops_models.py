"""Text models with random or absent weights on any device, for kernels written in UOps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.config import GemmaConfig, expected_text_tensors, parse_config, preset_dict
from gemma4_core.contracts import Context
from gemma4_core.engine.engine import Engine
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops import Operations
from gemma4_core.weights import DenseMatrix, DenseStack, Weight
from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack

Make = Callable[[str, tuple[int, ...], DType], Tensor]
"""A tensor of a name, shape and type."""


def small(preset: str, **changes: Any) -> GemmaConfig:
    """A tiny preset with changes of its text config."""
    raw = preset_dict(preset, towers=False)
    raw["text_config"] |= changes
    return parse_config(raw)


class ModelWithEngine(GemmaModel):
    """Weights without a folder, and an engine over them."""

    @cached_property
    def engine(self) -> Engine:
        """Runs its steps."""
        return Engine(self)


def model_of(config: GemmaConfig, kind: str, device: str, operations: Operations, make: Make) -> ModelWithEngine:
    """A model whose matrices are ``fp32``, ``bf16`` or ``int8``; in fp32 or, beside the others, bf16."""
    places, tensors = {}, {}
    dtype = dtypes.float32 if kind == "fp32" else dtypes.bfloat16
    for name, shape in expected_text_tensors(config).items():
        if len(shape) == 1:
            tensors[name] = make(name, shape, dtype)
        elif kind == "int8" and not name.endswith("router.proj.weight"):
            held = Int8Matrix if len(shape) == 2 else Int8Stack
            scale = make(name + "_scale", shape[:-1], dtypes.float32)
            places[name] = Weight(name, held(make(name, shape, dtypes.int8), scale, dtype))
        else:
            plain = DenseMatrix if len(shape) == 2 else DenseStack
            places[name] = Weight(name, plain(make(name, shape, dtype), dtype))
    return ModelWithEngine(Context(config=config), device, dtype, operations, places, tensors)


def nothing(device: str) -> Make:
    """Tensors without contents."""
    return lambda name, shape, dtype: Tensor.empty(*shape, dtype=dtype, device=device)


class Drawn:
    """Tensors of random numbers, the same for a name on every device."""

    def __init__(self) -> None:
        self.made: dict[str, np.ndarray] = {}

    def numbers(self, name: str, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
        """Such that activations stay of order one."""
        if name not in self.made:
            random = np.random.default_rng(len(self.made))
            if dtype == dtypes.int8:
                values: np.ndarray = random.integers(-127, 128, shape, np.int8)
            elif name.endswith("_scale") and not name.endswith("scale.weight"):
                values = (random.uniform(0.5, 1.5, shape) / 74 / 8).astype(np.float32)
            elif len(shape) > 1:
                values = (random.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
            else:
                values = random.uniform(0.5, 1.5, shape).astype(np.float32)
            self.made[name] = values
        return self.made[name]

    def on(self, device: str) -> Make:
        """Made on a device."""

        def make(name: str, shape: tuple[int, ...], dtype: DType) -> Tensor:
            values = Tensor(self.numbers(name, shape, dtype), device="CPU").cast(dtype).contiguous().realize()
            return values.to(device).realize()  # rounded by the CPU, since an emulator is slow

        return make
