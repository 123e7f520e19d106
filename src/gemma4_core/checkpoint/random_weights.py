"""Checkpoints with random weights, in official and tiny shapes, for tests and benchmarks.

Weights come from a pool of normal noise that is read cyclically, so that 62 GB take little memory and no longer than
writing them. Its length is a prime: rows of a matrix do not repeat.
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
    parse_config,
    preset_dict,
)
from gemma4_core.config.models import FAMILIES, GENERATION
from gemma4_core.config.presets import without_towers
from gemma4_core.errors import ConfigError
from gemma4_core.formatting import shown
from gemma4_core.plugins import registry

POOL = 8_388_593
"""The largest prime below 2^23."""


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
    """Write a checkpoint folder with random weights; needs only numpy and less than 300 MB of memory.

    Args:
        folder: where; an existing checkpoint or empty folder is replaced whole.
        config: a preset's name (``E2B``, ``tiny-e2b``, …), a config, or an object of config.json.
        seed: same seed, same bytes.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        max_shard_bytes: size above which weights are spread over several files.
        towers: False sets the towers' parts of the config to null.
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
    noise = Noise(seed, RUN_NAMES[dtype], tower_noise(parsed))
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
    family = FAMILIES.get(str(data.get("model_type")))
    if text_only and family is not None:
        return {"architectures": [family.text_architecture], **data["text_config"]}
    if not towers and family is not None:
        return without_towers(data)
    return data


def all_tensors(config: GemmaConfig, shared_kv: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of every tensor by name."""
    text = config.text_config
    shapes = registry.expected_tensors(config)
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


def tower_noise(config: GemmaConfig) -> dict[str, tuple[float, float]]:
    """Mean and spread of the towers' tensors that differ from the text model's, by name."""
    found = {}
    for tower in registry.towers_of(config):
        if tower.random_values is None:
            continue
        for name, shape in tower.tensors(config).items():
            values = tower.random_values(name, shape)
            if values is not None:
                found[name] = values
    return found


class Noise:
    """Random tensors by name, as bytes in pieces."""

    def __init__(self, seed: int, dtype: str, special: Mapping[str, tuple[float, float]]) -> None:
        self.seed, self.dtype, self.special = seed, dtype, special
        self.pool = np.random.default_rng(seed).standard_normal(POOL, dtype=np.float32)
        # zero has no exponent to scale; only one number in millions would be affected
        self.pool[np.abs(self.pool) < 1e-6] = 1e-6
        self.scaled: dict[int, np.ndarray] = {}

    def tensor(self, planned: Planned) -> Iterator[memoryview]:
        """The bytes of a tensor. Small ones depend on their kind; matrices keep activations near 1. The result does not
        depend on the order of the calls, and so not on how tensors are spread over files."""
        generator = np.random.default_rng([self.seed, zlib.crc32(planned.name.encode())])
        centre, deviation = self.centre_and_spread(planned.name, planned.shape)
        if len(planned.shape) < 2:
            noise = generator.standard_normal(planned.shape, dtype=np.float32)
            values = np.asarray(centre + deviation * noise, np.float32)
            yield np.ascontiguousarray(convert(values, "F32", self.dtype)).data.cast("B")
            return
        exponent = round(math.log2(deviation))
        count, start = math.prod(planned.shape), int(generator.integers(POOL))
        while count:
            piece = self.piece(exponent, start, min(count, POOL - start))
            yield piece.data.cast("B")
            count -= piece.size
            start = 0

    def centre_and_spread(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Mean and spread of a tensor's noise: as its tower says, else as for the text model. Matrices have mean 0."""
        if name in self.special:
            return self.special[name]
        return vector(name, shape) if len(shape) < 2 else (0.0, shape[-1] ** -0.5)

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


def vector(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and spread of a tensor of rank 0 or 1 without further information: a norm's weight, or a scalar of 1."""
    if name.endswith("layer_scalar"):
        return 1.0, 0.0
    # attention scores are not divided by the root of the head size: this gives them a spread of 2
    centre = 2.0 * shape[0] ** -0.5 if name.endswith("k_norm.weight") else 1.0
    return centre, 0.1 * centre
