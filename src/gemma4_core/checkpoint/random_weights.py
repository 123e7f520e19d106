"""Checkpoints with random weights, in official and tiny shapes, for tests and benchmarks.

Weights come from a pool of normal noise that is read round and round, so that 62 GB take little memory and no longer
than writing them. Its length is a prime: rows of a matrix do not repeat.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_core.checkpoint.atomic import atomic_folder
from gemma4_core.checkpoint.convert import RUN_NAMES, convert
from gemma4_core.checkpoint.writer import MAX_SHARD_BYTES, Planned, write_shards
from gemma4_core.config import (
    GemmaConfig,
    config_dict,
    expected_audio_tensors,
    expected_text_tensors,
    expected_vision_tensors,
    parse_config,
    preset_dict,
)
from gemma4_core.config.presets import GENERATION
from gemma4_core.config.tensors import CLIP_BOUNDS
from gemma4_core.errors import ConfigError
from gemma4_core.formatting import shown

POOL = 8_388_593
"""The largest prime below 2^23."""
CLIP = 40.0
"""Clip bounds: wider than what these models' activations reach."""


def write_random_checkpoint(
    folder: Path | str,
    config: str | GemmaConfig | Mapping[str, Any],
    seed: int = 0,
    dtype: str = "bfloat16",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    towers: bool = True,
    text_only: bool = False,
    shared_kv: bool = False,
    extra_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a checkpoint folder with random weights; needs numpy alone and less than 300 MB of memory.

    Args:
        folder: where; an existing checkpoint or empty folder is replaced whole.
        config: a preset's name (``E2B``, ``tiny-e2b``, …), a config, or an object of config.json.
        seed: same seed, same bytes.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        max_shard_bytes: size above which weights are spread over several files.
        towers: False sets ``vision_config`` and ``audio_config`` to null.
        text_only: write a ``gemma4_text`` checkpoint.
        shared_kv: also write K and V of layers that share them, as the released E2B and E4B files do.
        extra_files: further files by name, such as a tokenizer.

    Returns:
        the folder.

    Raises:
        ConfigError: unknown preset or dtype, or a config that is not supported.
        CheckpointError: the folder cannot be written.
    """
    if dtype not in RUN_NAMES:
        raise ConfigError(f"dtype {shown(dtype)} cannot be written; choose one of {', '.join(RUN_NAMES)}")
    data = describe(config, towers, text_only) | {"dtype": dtype}
    parsed = parse_config(data)
    noise = Noise(seed, RUN_NAMES[dtype])
    plan = [Planned(name, noise.dtype, shape) for name, shape in all_tensors(parsed, shared_kv).items()]
    with atomic_folder(folder) as temporary:
        write_shards(temporary, plan, noise.tensor, max_shard_bytes)
        write_json(temporary / "config.json", data)
        write_json(temporary / "generation_config.json", generation_dict(parsed))
        for name, content in (extra_files or {}).items():
            (temporary / name).write_bytes(content)
    return Path(folder)


def describe(config: str | GemmaConfig | Mapping[str, Any], towers: bool, text_only: bool) -> dict[str, Any]:
    """The config.json object to write."""
    if isinstance(config, str):
        return preset_dict(config, towers, text_only)
    data = config_dict(config) if isinstance(config, GemmaConfig) else copy.deepcopy(dict(config))
    if text_only and data.get("model_type") == "gemma4":
        return {"architectures": ["Gemma4ForCausalLM"], **data["text_config"]}
    if not towers and data.get("model_type") == "gemma4":
        return data | {"vision_config": None, "audio_config": None}
    return data


def all_tensors(config: GemmaConfig, shared_kv: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor by name."""
    text = config.text_config
    shapes = expected_text_tensors(config) | expected_vision_tensors(config) | expected_audio_tensors(config)
    for layer in text.layers if shared_kv else ():
        if layer.is_shared:
            attention = f"{config.text_prefix}layers.{layer.index}.self_attn."
            projection = (layer.num_key_value_heads * layer.head_dim, text.hidden_size)
            shapes |= {f"{attention}k_proj.weight": projection, f"{attention}k_norm.weight": (layer.head_dim,)}
            if not layer.k_eq_v:
                shapes[f"{attention}v_proj.weight"] = projection
    return shapes


def generation_dict(config: GemmaConfig) -> dict[str, Any]:
    """generation_config.json as released, with stop ids that the vocabulary has."""
    ids = [token for token in GENERATION["eos_token_id"] if token < config.text_config.vocab_size]
    return GENERATION | {"eos_token_id": ids}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """An object as indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


class Noise:
    """Random tensors by name, as bytes in pieces."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.seed, self.dtype = seed, dtype
        self.pool = np.random.default_rng(seed).standard_normal(POOL, dtype=np.float32)
        # zero has no exponent to scale; it would be a matter of one number in millions
        self.pool[np.abs(self.pool) < 1e-6] = 1e-6
        self.scaled: dict[int, np.ndarray] = {}

    def tensor(self, planned: Planned) -> Iterator[memoryview]:
        """The bytes of a tensor. Small ones depend on their kind; matrices keep activations near 1. The order in which
        tensors are asked for, and so their spread over files, makes no difference."""
        generator = np.random.default_rng([self.seed, zlib.crc32(planned.name.encode())])
        if len(planned.shape) < 2:
            values = vector(planned.name, planned.shape, generator)
            yield np.ascontiguousarray(convert(values, "F32", self.dtype)).data.cast("B")
            return
        exponent = round(math.log2(spread(planned.name, planned.shape)))
        count, start = math.prod(planned.shape), int(generator.integers(POOL))
        while count:
            piece = self.piece(exponent, start, min(count, POOL - start))
            yield piece.data.cast("B")
            count -= piece.size
            start = 0

    def piece(self, exponent: int, start: int, count: int) -> np.ndarray:
        """Noise with standard deviation ``2 ** exponent``. In bfloat16 that is kept: scaling only moves exponents."""
        if self.dtype != "BF16":
            values = np.ldexp(self.pool[start : start + count], exponent)
            return np.ascontiguousarray(convert(values, "F32", self.dtype))
        if exponent not in self.scaled:
            base = self.scaled[0] if self.scaled else convert(self.pool, "F32", "BF16")
            self.scaled.setdefault(0, base)
            self.pool = np.empty(0, np.float32)
            self.scaled[exponent] = base + np.uint16((exponent << 7) & 0xFFFF)
        return self.scaled[exponent][start : start + count]


def vector(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Values of a tensor of rank 0 or 1: constants where the model needs them, else noise about a centre."""
    kind = name.rsplit(".", 1)[-1]
    if kind in CLIP_BOUNDS:
        return np.full(shape, -CLIP if kind.endswith("min") else CLIP, np.float32)
    if kind == "layer_scalar":
        return np.ones(shape, np.float32)
    centre = 0.0 if kind in ("per_dim_scale", "bias", "std_bias") else 1.0
    if name.endswith("k_norm.weight"):
        # attention scores are not divided by the root of the head size: this gives them a spread of 2
        centre = 2.0 * shape[0] ** -0.5
    noise = generator.standard_normal(shape, dtype=np.float32)
    return (centre + 0.1 * (centre or 1.0) * noise).astype(np.float32)


def spread(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a weight's noise: one over the root of the inputs of one output."""
    if name.endswith("position_embedding_table"):
        return 0.125
    inputs = math.prod(shape[1:]) if "conv" in name.rsplit(".", 2)[-2] else shape[-1]
    return inputs**-0.5
