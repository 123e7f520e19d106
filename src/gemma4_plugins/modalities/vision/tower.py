"""The vision tower: patches to soft tokens. Formulas follow transformers 5.23.0, ``models/gemma4/modeling_gemma4.py``.

Both variants are here: small (clipped linears) and large (soft tokens standardised). Attention looks at all patches,
so their order does not matter, and the patches of one soft token are kept side by side: pooling is a mean of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.contracts import WeightSource
from gemma4_core.contracts.arranged_media import ArrangedMedia
from gemma4_core.ops.portable import rms_norm
from gemma4_core.ops.tower_table import Rotation, TowerOperations
from gemma4_core.ops.towers import portable_towers, tower_operations
from gemma4_core.processing.tower_graphs import Captured
from gemma4_plugins.modalities.clipped import Linear, Names, TowerWeights
from gemma4_plugins.modalities.encoding import EncodingTower
from gemma4_plugins.modalities.vision.config import VisionConfig, vision_config
from gemma4_plugins.modalities.vision.layout import KEYWORDS, arrange, arrange_together, read_features
from gemma4_plugins.modalities.vision.tensors import EMBEDDER, NORMS, TOWER, vision_tensors

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


class EncoderLayer:
    """Attention and gated MLP, each between two norms and added to the stream."""

    def __init__(self, config: VisionConfig, names: Names) -> None:
        self.config, self.eps = config, config.rms_norm_eps
        self.norms = [names[f"{norm}.weight"] for norm in NORMS]
        attention, mlp = names.below("self_attn."), names.below("mlp.")
        self.q, self.k, self.v, self.o = (attention.clipped(f"{name}_proj") for name in "qkvo")
        self.q_norm, self.k_norm = attention["q_norm.weight"], attention["k_norm.weight"]
        self.gate, self.up, self.down = (mlp.clipped(f"{name}_proj") for name in ("gate", "up", "down"))

    def __call__(self, h: Tensor, turn: Rotation, real: Tensor, ops: TowerOperations) -> Tensor:
        """``h [N, hidden]`` to ``[N, hidden]``; ``real`` as for ``TowerOperations.attention``."""
        before, after, before_mlp, after_mlp = self.norms
        x = self.attention(ops.norm(h, before, self.eps), turn, real, ops)
        h = ops.norm(self.o.unbounded(x, ops), after, self.eps, self.o.outer, added=h)
        x = ops.norm(h, before_mlp, self.eps)
        gate, up = (layer.unbounded(x, ops) for layer in (self.gate, self.up))
        x = ops.gated(gate, up, self.gate.outer, self.up.outer, self.down.inner)
        return ops.norm(self.down.product(x, ops), after_mlp, self.eps, self.down.outer, added=h)

    def attention(self, x: Tensor, turn: Rotation, real: Tensor, ops: TowerOperations) -> Tensor:
        """``x [N, hidden]`` to mixed values ``[N, heads * D]``."""
        kinds = ((self.q, self.q_norm, turn), (self.k, self.k_norm, turn), (self.v, None, None))
        size = self.config.head_dim
        q, k, v = (
            ops.heads(layer.unbounded(x, ops), size, weight, self.eps, layer.outer, turned)
            for layer, weight, turned in kinds
        )
        return ops.attention(q, k, v, real)


class VisionTower(EncodingTower):
    """The assembled tower. Images are padded to one of few sizes."""

    keywords = KEYWORDS

    def __init__(self, model: GemmaModel, source: WeightSource) -> None:
        config = vision_config(model.config)
        assert config is not None
        self.config, self.device, self.dtype = config, model.device, model.dtype
        self.portable = portable_towers(model.operations)
        self.fast = tower_operations(model.operations, model.device)
        self.weights = TowerWeights(source, vision_tensors(model.config), model.device, model.dtype)
        tower = self.weights.below(TOWER)
        self.input_proj: Linear = tower.linear("patch_embedder.input_proj")
        self.position_table = tower["patch_embedder.position_embedding_table"]
        self.layers = [
            EncoderLayer(config, tower.below(f"encoder.layers.{index}.")) for index in range(config.num_hidden_layers)
        ]
        self.standard = (tower["std_bias"], tower["std_scale"]) if config.standardize else None
        self.projection = self.weights.below(EMBEDDER).linear("embedding_projection")
        self.captured = Captured(partial(self.soft_tokens, self.fast), self.parameters, self.device)

    def _read(self, features: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return read_features(features, self.config)

    def _run(self, pixels: np.ndarray, positions: np.ndarray) -> Tensor:
        slots = arrange(pixels, positions, self.config.pooling_kernel_size, "pixel_values")
        return self.captured([slots.pixels, slots.positions], slots.tokens)

    def arrange(self, features: Mapping[str, Any]) -> ArrangedMedia:
        return arrange_together(*self._read(features), self.config.pooling_kernel_size, "pixel_values")

    def encode_arranged(self, values: Tensor, extent: Tensor) -> Tensor:
        return self.soft_tokens(self.portable, values, extent)

    def soft_tokens(self, ops: TowerOperations, pixels: Tensor, positions: Tensor) -> Tensor:
        """fp32 patches ``[N, p * p * 3]`` and int32 positions ``[N, 2]`` to soft tokens ``[N / pool², hidden]``; rows
        of soft tokens that are all padding have no meaning. Several images come as ``[images, N, …]``, N a multiple
        of pool², and go as ``[images * N / pool², hidden]``."""
        real = positions[..., 0] >= 0
        # only attention tells images apart: [images, N, …] -> [images * N, …]
        pixels, positions = pixels.reshape(-1, pixels.shape[-1]), positions.reshape(-1, 2)
        h = self._embed(ops, pixels, positions, real.reshape(-1))
        turn = self._rotation(positions)
        for layer in self.layers:
            h = layer(h, turn, real, ops)
        return self._embedder(ops, self._pool(h, real.reshape(-1)))

    def _embed(self, ops: TowerOperations, pixels: Tensor, positions: Tensor, real: Tensor) -> Tensor:
        h = self.input_proj((2 * (pixels - 0.5)).cast(self.dtype), ops)
        places = positions.maximum(0)
        where = self.position_table[0][places[:, 0]] + self.position_table[1][places[:, 1]]  # [N, hidden]
        return h + real.unsqueeze(1).where(where, 0)

    def _rotation(self, positions: Tensor) -> Rotation:
        """cos and sin ``[N, 2, D/4]`` rounded to the working dtype as the reference does, held in fp32."""
        half = self.config.head_dim // 2
        exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
        frequencies = (1.0 / np.power(np.float32(self.config.rope_theta), exponents)).astype(np.float32)
        angles = positions.cast(dtypes.float32).unsqueeze(-1) * Tensor(frequencies, device=self.device)
        rounded = lambda x: x.cast(self.dtype).cast(dtypes.float32)  # noqa: E731
        # in memory: fused into every layer's rotation they would be computed anew in each
        return rounded(angles.cos()).contiguous(), rounded(angles.sin()).contiguous()

    def _pool(self, h: Tensor, real: Tensor) -> Tensor:
        """Mean over the patches of each soft token, scaled and standardised in fp32: ``[N / pool², hidden]``."""
        square = self.config.pooling_kernel_size**2
        wide = real.unsqueeze(1).where(h.cast(dtypes.float32), 0)
        tokens = h.shape[0] // square
        # [N, hidden] -> [tokens, pool², hidden] -> [tokens, hidden]
        pooled = wide[: tokens * square].reshape(tokens, square, h.shape[-1]).sum(1) / square
        scaled = pooled.cast(self.dtype).cast(dtypes.float32) * self.config.hidden_size**0.5
        if self.standard is not None:
            bias, scale = self.standard
            scaled = (scaled - bias.cast(dtypes.float32)) * scale.cast(dtypes.float32)
        return scaled.cast(self.dtype)

    def _embedder(self, ops: TowerOperations, tokens: Tensor) -> Tensor:
        return self.projection(rms_norm(tokens, None, self.config.rms_norm_eps), ops)
