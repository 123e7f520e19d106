"""Random weights made in host memory, for benchmarks of training on a processor: no folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.dtype import DType

from gemma4_core.config import expected_text_tensors, parse_config, preset_dict
from gemma4_core.contracts import Context
from gemma4_core.model.model import GemmaModel
from gemma4_core.ops import Operations
from gemma4_core.ops.graphs import upload
from gemma4_core.weights import DenseMatrix, Weight
from gemma4_plugins.layouts.int8 import Int8Matrix

DEVICE = "CPU"


def cut(size: str, layers: int | None) -> dict[str, Any]:
    """The config of a preset, or of a cut of it as ``peer_training.cut`` makes it."""
    raw = dict(preset_dict(size, towers=False))
    text = raw.get("text_config", raw)
    if layers is not None:
        half = ["sliding_attention"] * (layers // 2 - 1) + ["full_attention"]
        text |= {"num_hidden_layers": layers, "layer_types": half * 2, "num_kv_shared_layers": layers // 2}
    return raw


def random_text(
    size: str, operations: Operations, layers: int | None = None, int8: bool = False, dtype: DType = dtypes.bfloat16
) -> GemmaModel:
    """A text model with random weights, of which activations stay of order one; ``int8``: with int8 matrices."""
    config, rng = parse_config(cut(size, layers)), np.random.default_rng(0)
    places: dict[str, Weight] = {}
    tensors: dict[str, Tensor] = {}
    for name, shape in expected_text_tensors(config).items():
        if len(shape) == 1:
            drawn = rng.normal(0.8, 0.05, shape) if name.endswith("layer_scalar") else rng.normal(1.0, 0.2, shape)
            tensors[name] = upload(drawn.astype(np.float32), DEVICE, dtype)
            continue
        numbers = np.frombuffer(rng.bytes(int(np.prod(shape))), np.int8).reshape(shape)
        spread = 0.06 if "per_layer.weight" in name else shape[-1] ** -0.5
        scale = rng.uniform(0.5, 1.5, shape[0]).astype(np.float32) * np.float32(spread / 74)
        held = Int8Matrix(upload(numbers, DEVICE), upload(scale, DEVICE), dtype)
        places[name] = Weight(name, held if int8 else DenseMatrix(held.dense().contiguous().realize(), dtype))
    return GemmaModel(Context(config=config), DEVICE, dtype, operations, places, tensors)
