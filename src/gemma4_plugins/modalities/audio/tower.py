"""The audio tower: mel frames to soft tokens. Formulas follow transformers 5.23.0,
``models/gemma4/modeling_gemma4.py``: two convolutions that keep a quarter of the frames, conformer layers, projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.contracts import WeightSource
from gemma4_core.contracts.arranged_media import ArrangedMedia
from gemma4_core.errors import InputError
from gemma4_core.ops.graphs import upload
from gemma4_core.ops.portable import rms_norm
from gemma4_core.ops.tower_table import Bounds, TowerOperations
from gemma4_core.ops.towers import clamp, portable_towers, tower_operations
from gemma4_core.processing.arrays import as_array
from gemma4_core.processing.tower_graphs import Captured
from gemma4_core.weights import DenseMatrix
from gemma4_plugins.modalities.audio.attention import LocalAttention, sinusoids
from gemma4_plugins.modalities.audio.config import AudioConfig, audio_config
from gemma4_plugins.modalities.audio.processor import KEYWORDS
from gemma4_plugins.modalities.audio.tensors import EMBEDDER, TOWER, audio_tensors
from gemma4_plugins.modalities.clipped import Linear, Names, TowerWeights
from gemma4_plugins.modalities.encoding import EncodingTower, rows_of

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel

LAYER_EPS = 1e-6
"""The norms around attention and feed-forward keep this eps, whatever rms_norm_eps says."""
SIZES = (16, 64, 128, 256, 384, 512, 768)
"""Soft tokens that graphs are captured for; a clip runs at the next size, padding masked."""
SUBSAMPLING = 4
"""Frames per soft token."""


def clipping(config: AudioConfig) -> Bounds:
    """Of the stream before its norms."""
    return -config.gradient_clipping, config.gradient_clipping


class FeedForward:
    """Norm, two layers with SiLU between them, norm, weighted and added to the stream."""

    def __init__(self, config: AudioConfig, names: Names) -> None:
        self.bounds, self.weight = clipping(config), config.residual_weight
        self.before, self.after = names["pre_layer_norm.weight"], names["post_layer_norm.weight"]
        self.widen, self.narrow = names.clipped("ffw_layer_1"), names.clipped("ffw_layer_2")

    def __call__(self, h: Tensor, ops: TowerOperations) -> Tensor:
        x = ops.norm(h, self.before, LAYER_EPS, self.bounds)
        x = self.widen.unbounded(x, ops)
        x = self.narrow.product(ops.silu(x, self.widen.outer, self.narrow.inner), ops)
        x = ops.norm(ops.bounded(x, self.narrow.outer), self.after, LAYER_EPS, self.bounds)
        # kept in memory after each addition: else every reader repeats the additions before it
        return (x * self.weight + h).contiguous()


class LightConvolution:
    """Gated linear unit, a causal convolution per channel, SiLU; added to the stream."""

    def __init__(self, config: AudioConfig, names: Names) -> None:
        self.bounds, self.eps = clipping(config), config.rms_norm_eps
        self.before, self.conv_norm = names["pre_layer_norm.weight"], names["conv_norm.weight"]
        self.start, self.end = names.clipped("linear_start"), names.clipped("linear_end")
        self.taps = names["depthwise_conv1d.weight"]  # [hidden, 1, taps]

    def __call__(self, h: Tensor, clips: int, ops: TowerOperations) -> Tensor:
        """``h [clips * T, hidden]`` to ``[clips * T, hidden]``."""
        x = self.start(ops.norm(h, self.before, self.eps), ops).cast(dtypes.float32)
        value, gate = x.chunk(2, dim=-1)
        x = self._convolve((value * gate.sigmoid()).cast(h.dtype).contiguous(), clips)
        x = ops.silu(ops.norm(x, self.conv_norm, self.eps, self.bounds), None, self.end.inner)
        return (clamp(self.end.product(x, ops), self.end.outer) + h).contiguous()

    def _convolve(self, x: Tensor, clips: int) -> Tensor:
        """``x [clips * T, hidden]``: the last tap meets the frame itself, earlier taps earlier frames of its clip."""
        taps = self.taps.shape[-1]
        # [clips * T, hidden] -> [clips, T, hidden]
        wide = x.cast(dtypes.float32).reshape(clips, -1, x.shape[-1])
        length, weights = wide.shape[1], self.taps.cast(dtypes.float32)
        padded = wide.pad(((0, 0), (taps - 1, 0), (0, 0)))
        terms = [padded[:, tap : tap + length] * weights[:, 0, tap] for tap in range(taps)]
        return sum(terms[1:], terms[0]).reshape(*x.shape).cast(x.dtype)


class ConformerLayer:
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, config: AudioConfig, names: Names) -> None:
        self.bounds = clipping(config)
        self.first, self.last = (FeedForward(config, names.below(f"feed_forward{n}.")) for n in (1, 2))
        self.attention = LocalAttention(config, names.below("self_attn."))
        self.convolution = LightConvolution(config, names.below("lconv1d."))
        self.norms = [names[f"norm_{name}.weight"] for name in ("pre_attn", "post_attn", "out")]

    def __call__(self, h: Tensor, positions: Tensor, real: Tensor, ops: TowerOperations) -> Tensor:
        """``h [clips * T, hidden]``, ``positions [distances, hidden]``, ``real`` bool ``[clips, T]``:
        ``[clips * T, hidden]``."""
        before, after, out = self.norms
        h = self.first(h, ops)
        x = ops.norm(h, before, LAYER_EPS, self.bounds)
        x = self.attention(x, positions, real, ops)
        h = ops.norm(x, after, LAYER_EPS, self.bounds, added=h)
        h = self.last(self.convolution(h, int(real.shape[0]), ops), ops)
        return ops.norm(h, out, LAYER_EPS, self.bounds)


class Subsampling:
    """Two convolutions of stride 2 over frames and mel bins, each with a norm over channels and ReLU; a projection."""

    def __init__(self, config: AudioConfig, names: Names) -> None:
        self.eps = config.rms_norm_eps
        self.convs = [names[f"layer{n}.conv.weight"] for n in (0, 1)]
        self.norms = [names[f"layer{n}.norm.weight"] for n in (0, 1)]
        self.projection = names.linear("input_proj_linear")

    def __call__(self, features: Tensor, real: Tensor, ops: TowerOperations) -> Tensor:
        """``features [clips, frames, mel]``, ``real`` bool ``[clips, frames]``: ``[clips * frames / 4, hidden]``."""
        x = features.cast(self.convs[0].dtype).unsqueeze(-1)  # [clips, frames, mel, 1]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = real.reshape(*real.shape, 1, 1).where(x, 0)
            x = self._norm(self._convolve(x, conv, ops), norm).relu()
            real = real[:, ::2]
        # [clips, T, mel, channels] -> [clips * T, mel * channels]
        return self.projection(x.reshape(x.shape[0] * x.shape[1], -1), ops)

    @staticmethod
    def _convolve(x: Tensor, weight: Tensor, ops: TowerOperations) -> Tensor:
        """3 x 3, stride 2, one zero around ``x [clips, T, mel, channels]``: ``[clips, T / 2, mel / 2, out]``, as one
        product."""
        clips, length, bins, channels = (int(n) for n in x.shape)
        length, bins = (length + 1) // 2, (bins + 1) // 2
        padded = x.pad(((0, 0), (1, 1), (1, 1), (0, 0))).contiguous()
        shifts = [padded[:, i : i + 2 * length : 2, j : j + 2 * bins : 2] for i in range(3) for j in range(3)]
        # [clips, T, mel, channels, 9] -> [clips * T * mel, channels * 9]
        patches = shifts[0].stack(*shifts[1:], dim=-1).reshape(clips * length * bins, channels * 9)
        matrix = DenseMatrix(weight.reshape(weight.shape[0], -1), weight.dtype)
        return ops.linear(patches, matrix).reshape(clips, length, bins, -1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.cast(dtypes.float32)
        centred = wide - wide.mean(-1, keepdim=True)
        normed = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (normed * weight.cast(dtypes.float32)).cast(x.dtype)


class AudioTower(EncodingTower):
    """The assembled tower. Clips are padded to one of few sizes."""

    keywords = KEYWORDS

    def __init__(self, model: GemmaModel, source: WeightSource) -> None:
        config = audio_config(model.config)
        assert config is not None
        self.config, self.device, self.dtype = config, model.device, model.dtype
        self.portable = portable_towers(model.operations)
        self.fast = tower_operations(model.operations, model.device)
        self.weights = TowerWeights(source, audio_tensors(model.config), model.device, model.dtype)
        tower = self.weights.below(TOWER)
        self.subsampling = Subsampling(config, tower.below("subsample_conv_projection."))
        self.layers = [ConformerLayer(config, tower.below(f"layers.{i}.")) for i in range(config.num_hidden_layers)]
        self.output: Linear = tower.linear("output_proj")
        self.output_bias = tower["output_proj.bias"]
        self.projection = self.weights.below(EMBEDDER).linear("embedding_projection")
        positions = upload(sinusoids(self.layers[0].attention.band, config.hidden_size), self.device)
        self.positions = positions.cast(self.dtype).contiguous().realize()
        self.captured = Captured(partial(self.soft_tokens, self.fast), self.parameters, self.device)

    def soft_tokens(self, ops: TowerOperations, features: Tensor, real: Tensor) -> Tensor:
        """fp32 ``[clips, frames, mel]`` and bool ``[clips, frames]`` to ``[clips * frames / 4, hidden]``; rows of
        invalid frames have no meaning."""
        h = self.subsampling(features, real, ops)
        seen = real[:, ::SUBSAMPLING]
        for layer in self.layers:
            h = layer(h, self.positions, seen, ops)
        h = self.output(h, ops) + self.output_bias
        return self.projection(rms_norm(h, None, self.config.rms_norm_eps), ops)

    def _read(self, features: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Features fp32 ``[clips, frames, mel]`` and validity bool ``[clips, frames]``; no mask means all valid."""
        if features.get("input_features") is None:
            raise InputError("input_features is missing; pass it and input_features_mask as the processor returns them")
        values = as_array(features["input_features"], "input_features")
        values = values[None] if values.ndim == 2 else values
        bins = self.config.subsampling_conv_channels[0]
        if values.ndim != 3 or (values.shape[-1] + 3) // 4 != bins // 4:
            raise InputError(f"input_features: shape {list(values.shape)}, expected [clips, frames, {bins}]")
        mask = features.get("input_features_mask")
        valid = np.ones(values.shape[:2], np.bool_) if mask is None else as_array(mask, "input_features_mask") != 0
        valid = valid[None] if valid.ndim == 1 else valid
        if valid.shape != values.shape[:2]:
            raise InputError(f"input_features_mask: shape {list(valid.shape)}, expected {list(values.shape[:2])}")
        if not valid[:, ::SUBSAMPLING].any(1).all():
            raise InputError(f"input_features_mask: a clip has no valid frame among every {SUBSAMPLING}th, which count")
        return values.astype(np.float32, copy=False), valid

    def _run(self, features: np.ndarray, valid: np.ndarray) -> Tensor:
        arranged = arrange(features[None], valid[None])
        rows = arranged.rows[0]
        tokens = self.captured(arranged.arrays, int(rows[-1]) + 1)
        # rows of valid frames are the first ones unless a mask has holes
        return tokens if len(rows) == tokens.shape[0] else rows_of(tokens, rows)

    def arrange(self, features: Mapping[str, Any]) -> ArrangedMedia:
        return arrange(*self._read(features))

    def encode_arranged(self, values: Tensor, extent: Tensor) -> Tensor:
        return self.soft_tokens(self.portable, values, extent)


def arrange(features: np.ndarray, valid: np.ndarray) -> ArrangedMedia:
    """Clips ``[clips, frames, mel]`` cut behind the last valid frame of any and padded to a captured size; which soft
    tokens are valid."""
    end = int(max(np.flatnonzero(valid.any(0)), default=0)) + 1
    wanted = -(-end // SUBSAMPLING)
    tokens = next((n for n in SIZES if n >= wanted), -(-wanted // SIZES[-1]) * SIZES[-1])
    clips, size = len(features), tokens * SUBSAMPLING
    padded, real = np.zeros((clips, size, features.shape[2]), np.float32), np.zeros((clips, size), np.bool_)
    padded[:, :end], real[:, :end] = features[:, :end], valid[:, :end]
    rows = [index * tokens + np.flatnonzero(mask[::SUBSAMPLING]) for index, mask in enumerate(real)]
    return ArrangedMedia((padded, real), rows, clips * tokens)
