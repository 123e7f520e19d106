"""Parameters and bytes of a checkpoint by part, and the memory that a context needs, without loading anything."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig
    from gemma4_core.contracts import TensorInfo
    from gemma4_core.ops import Operations

CONTEXTS = (512, 2048, 8192, 32_768, 131_072, 262_144)
UNUSED = "unused shared K/V"
_TOWER = re.compile(r"model\.(?:embed_)?([a-z]+?)(?:_tower)?\.")


@dataclass
class Part:
    """A part of a model."""

    name: str
    parameters: int = 0
    nbytes: int = 0
    """Bytes on the device."""


@dataclass(frozen=True)
class Need:
    """Memory for one context length, in bytes."""

    context: int
    cache: int
    total: int
    """Weights and cache together."""


def part_of(config: GemmaConfig, name: str) -> str:
    """The part that a tensor belongs to."""
    from gemma4_core.config import ignorable

    if ignorable(config, name):
        return UNUSED
    if name.startswith(config.text_prefix):
        rest = name[len(config.text_prefix) :]
        if rest.startswith("embed_tokens."):
            return "embedding and head"
        if rest.startswith(("embed_tokens_per_layer.", "per_layer_")):
            return "per-layer embedding"
        return "experts" if ".experts." in rest else "decoder layers"
    found = _TOWER.match(name)
    return f"{found[1]} tower" if found else "other"


def parts(config: GemmaConfig, infos: Mapping[str, TensorInfo], itemsize: int) -> list[Part]:
    """Parameters and bytes by part, in order of appearance; plain weights take ``itemsize`` each."""
    from gemma4_core.checkpoint.opening import loaded_bytes

    found: dict[str, Part] = {}
    for name, info in infos.items():
        part = found.setdefault(part_of(config, name), Part(part_of(config, name)))
        part.parameters += math.prod(info.shape)
        part.nbytes += loaded_bytes(info, itemsize)
    return list(found.values())


def used_bytes(found: Iterable[Part]) -> int:
    """Bytes of the parts that are loaded."""
    return sum(part.nbytes for part in found if part.name != UNUSED)


def active_parameters(config: GemmaConfig, found: Iterable[Part]) -> int:
    """Parameters that one token of text uses. Embedding tables count in full, though a token reads one row."""
    text = config.text_config
    share = text.top_k_experts / text.num_experts if text.enable_moe_block else 1.0
    counted = [p for p in found if p.name != UNUSED and not p.name.endswith("tower") and p.name != "other"]
    return sum(round(p.parameters * share) if p.name == "experts" else p.parameters for p in counted)


def cache_bytes(config: GemmaConfig, context: int, chunk: int, longest_chunk: int, itemsize: int = 2) -> int:
    """Bytes of a K/V cache that holds ``context`` positions, on a device with these chunks (``Operations.chunk``).

    Sliding layers keep a ring of one window and the longest prefill chunk; full layers a buffer that has grown to the
    capacity step, and a chunk; layers that share another's K and V keep nothing.
    """
    from gemma4_core.model.cache import capacity_for

    text = config.text_config
    capacity = capacity_for(context, text.max_position_embeddings)
    total = 0
    for layer in text.layers:
        if not layer.is_shared:
            slots = capacity + chunk if layer.window is None else layer.window + longest_chunk
            total += 2 * layer.num_key_value_heads * layer.head_dim * slots * itemsize
    return total


def needs(config: GemmaConfig, weights: int, operations: Operations, both_ways: bool, itemsize: int = 2) -> list[Need]:
    """Memory for common context lengths up to the longest that the config allows. ``both_ways``: see
    ``Operations.longest_chunk``."""
    longest = config.text_config.max_position_embeddings
    lengths = [length for length in CONTEXTS if length < longest] + [longest]
    chunks = operations.chunk(longest), operations.longest_chunk(longest, both_ways)
    caches = {length: cache_bytes(config, length, *chunks, itemsize) for length in lengths}
    return [Need(length, cache, weights + cache) for length, cache in caches.items()]
