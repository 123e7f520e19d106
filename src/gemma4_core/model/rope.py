"""Rotary tables. Angles are fp32 products of position and inverse frequency, as in transformers 5.23.0."""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.config import LayerConfig
from gemma4_core.ops.graphs import upload


def inverse_frequencies(layer: LayerConfig) -> np.ndarray:
    """fp32 ``[head_dim / 2]``. With a partial factor only the first lanes of each half rotate, and the exponent still
    counts over the whole head: this is not a rotation of the first ``factor * head_dim`` lanes."""
    half = layer.head_dim // 2
    rotated = int(layer.partial_rotary_factor * layer.head_dim // 2)
    exponents = np.arange(0, 2 * rotated, 2, dtype=np.float32) / np.float32(layer.head_dim)
    frequencies = np.zeros(half, np.float32)
    frequencies[:rotated] = 1.0 / np.power(np.float32(layer.rope_theta), exponents, dtype=np.float32)
    return frequencies


def rope_table(layer: LayerConfig, positions: int, device: str, dtype: DType) -> tuple[Tensor, Tensor]:
    """cos and sin ``[positions, head_dim / 2]`` for positions 0, 1, …, rounded to the activation dtype."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(layer)[None, :]
    return upload(np.cos(angles), device, dtype), upload(np.sin(angles), device, dtype)
