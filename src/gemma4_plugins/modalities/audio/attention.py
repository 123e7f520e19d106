"""Local attention with relative positions, written out per distance.

transformers 5.23.0 computes it in blocks of queries against overlapping windows of keys and shifts the position term
into place. Written per distance d = query - key it needs neither blocks nor a shift, and grows linearly with the clip:
``score(i, i - d) = q_i . k_{i-d} + q_i . r_d``, capped, masked, and a softmax over the distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.errors import ConfigError
from gemma4_core.ops.tower_table import TowerOperations
from gemma4_plugins.modalities.audio.config import AudioConfig
from gemma4_plugins.modalities.clipped import Names

KEYS_BELOW_CONTEXT = 1
"""A query sees ``attention_context_left - KEYS_BELOW_CONTEXT`` keys, itself among them: 12 in transformers 5.23.0.
google-deepmind/gemma and mlx-vlm see 13 (a value of 0 here); which one the weights were trained with is not known."""
LONGEST_WAVELENGTH = 10_000.0


@dataclass(frozen=True)
class Band:
    """Which keys a query sees: those at distances ``first … last`` (negative: later ones)."""

    first: int
    last: int
    offset: int
    """What the reference's relative shift adds to a distance to get the position it embeds; 0 for released configs."""
    furthest: int
    """Largest embedded position. A distance whose position lies below 0 has no position term."""

    @classmethod
    def of(cls, config: AudioConfig) -> Band:
        past = config.attention_context_left - 1
        if past < KEYS_BELOW_CONTEXT:
            raise ConfigError(f"audio_config.attention_context_left {past + 1}: must be above {KEYS_BELOW_CONTEXT}")
        half_context = (config.attention_chunk_size + past + config.attention_context_right) // 2
        return cls(
            first=1 - max(config.attention_context_right, 1),
            last=config.attention_context_left - KEYS_BELOW_CONTEXT - 1,
            offset=half_context - past,
            furthest=half_context,
        )

    @property
    def distances(self) -> range:
        return range(self.first, self.last + 1)


def sinusoids(band: Band, width: int) -> np.ndarray:
    """Position embeddings fp32 ``[distances, width]``: sines, then cosines; zero where there is no position term."""
    count = width // 2
    step = math.log(LONGEST_WAVELENGTH) / max(count - 1, 1)
    rates = np.exp(np.arange(count, dtype=np.float32) * np.float32(-step))
    positions = np.array(band.distances, np.float32) + band.offset
    angles = positions[:, None] * rates[None, :]
    embedded = np.concatenate([np.sin(angles), np.cos(angles)], -1).astype(np.float32)
    return embedded * ((positions >= 0) & (positions <= band.furthest))[:, None]


def shifted(x: Tensor, band: Band) -> Tensor:
    """``x [clips, T, …]`` seen at every distance: ``[clips, T, distances, …]`` with x[i - d] at ``[i, d]``, 0 beyond
    the ends."""
    length, rest = x.shape[1], x.shape[2:]
    padding = tuple((0, 0) for _ in rest)
    padded = x.pad(((0, 0), (max(band.last, 0), max(-band.first, 0)), *padding))
    start = max(band.last, 0)
    views = [padded[:, start - d : start - d + length] for d in band.distances]
    return views[0].stack(*views[1:], dim=2) if len(views) > 1 else views[0].unsqueeze(2)


class LocalAttention:
    """Multi-head attention of ``x [clips * T, hidden]`` in fp32 between clipped projections."""

    def __init__(self, config: AudioConfig, names: Names) -> None:
        self.config, self.band = config, Band.of(config)
        self.q, self.k, self.v = (names.clipped(f"{name}_proj") for name in "qkv")
        self.post = names.clipped("post")
        self.relative = names.linear("relative_k_proj")
        self.per_dim_scale = names["per_dim_scale"]

    def __call__(self, x: Tensor, positions: Tensor, real: Tensor, ops: TowerOperations) -> Tensor:
        """``positions [distances, hidden]``, ``real`` bool ``[clips, T]`` marks valid frames:
        ``[clips * T, hidden]``."""
        c = self.config
        heads = lambda y: y.cast(dtypes.float32).reshape(y.shape[0], c.num_attention_heads, c.head_dim)  # noqa: E731
        q, k, v = (heads(layer(x, ops)).contiguous() for layer in (self.q, self.k, self.v))  # [n, heads, D]
        # in memory, as all that every distance would compute anew
        q = (q * (c.head_dim**-0.5 / math.log(2)) * softplus(self.per_dim_scale.cast(dtypes.float32))).contiguous()
        k = k * (math.log(1 + math.e) / math.log(2))
        r = heads(self.relative(positions, ops))  # [distances, heads, D]
        clips = lambda y: y.reshape(*real.shape, *y.shape[1:])  # noqa: E731  [clips * T, …] -> [clips, T, …]
        near = (clips(q).unsqueeze(2) * shifted(clips(k), self.band)).sum(-1)  # [clips, T, distances, heads]
        # [heads, n, D] @ [heads, D, distances] -> [n, distances, heads]
        relative = q.permute(1, 0, 2).matmul(r.permute(1, 2, 0)).permute(1, 2, 0).contiguous()
        scores = ((near + clips(relative)) / c.attention_logit_cap).tanh() * c.attention_logit_cap
        seen = shifted(real, self.band).unsqueeze(-1)  # [clips, T, distances, 1]
        weights = seen.where(scores, c.attention_invalid_logits_value).softmax(2)  # [clips, T, distances, heads]
        mixed = (weights.contiguous().unsqueeze(-1) * shifted(clips(v), self.band)).sum(2)  # [clips, T, heads, D]
        # [clips, T, heads, D] -> [clips * T, hidden]
        return self.post(mixed.reshape(x.shape[0], -1).cast(x.dtype), ops)


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x) without overflow."""
    return x.maximum(0) + (1 + (-x.abs()).exp()).log()
