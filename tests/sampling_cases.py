"""Rows that choose with every setting, alone and with all the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.ops.sampling import IN_PROMPT, SamplingTensors, sample

V, M = 77, 24
OFF = np.array([1, 0, 1, 0, 1, 0, 0], np.float32)


def case(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with every setting, each alone in some rows and with all the others in some."""
    rng = np.random.default_rng(seed)
    params = np.tile(OFF, (M, 1))
    drawn = np.stack([
        rng.uniform(0.3, 1.5, M), rng.integers(1, 20, M), rng.uniform(0.3, 0.95, M), rng.uniform(0.02, 0.4, M),
        rng.uniform(0.7, 1.8, M), rng.uniform(-1, 2, M), rng.uniform(-1, 2, M),
    ], 1).astype(np.float32)
    for row in range(M):
        which = range(7) if row >= M - 6 else [row % 8] if row % 8 < 7 else []
        params[row, list(which)] = drawn[row, list(which)]
    params[::7, 0] = 0
    counts = (rng.integers(0, 5, (M, V)) - 2).clip(0) + IN_PROMPT * rng.integers(0, 2, (M, V))
    allowed = rng.random((M, -(-V // 32), 32)) < 0.6
    return {
        "logits": rng.normal(0, 3, (M, V)).astype(np.float32), "params": params,
        "seed": rng.integers(0, 1 << 32, M).astype(np.uint32), "position": rng.integers(0, 1000, M).astype(np.int32),
        "counts": counts.astype(np.int32), "bias": np.where(rng.random((M, V)) < 0.1, 3.0, 0.0).astype(np.float32),
        "mask": (allowed * (np.uint32(1) << np.arange(32, dtype=np.uint32))).sum(2).astype(np.uint32),
        "drafted": rng.integers(-1, V, (M, 4)).astype(np.int32),
    }


def sampled(given: dict[str, np.ndarray], rows: Any = slice(None), **without: None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of some rows."""
    tensors = {name: Tensor(array[rows]).contiguous().realize() for name, array in given.items() if name not in without}
    logits, position = tensors.pop("logits"), tensors.pop("position")
    ids, logprobs = sample(logits, SamplingTensors(**tensors), position)
    return ids.numpy(), logprobs.numpy()
