"""The text decoder: embeddings, per-layer embeddings, layers, final norm, tied head.

Formulas follow transformers 5.23.0, ``models/gemma4/modeling_gemma4.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from tinygrad import Tensor, UOp, dtypes
from tinygrad.dtype import DType

from gemma4_core.config import LayerConfig, TextConfig
from gemma4_core.model.layers import DecoderLayer, Rotation, matrix, scale
from gemma4_core.model.rope import rope_table
from gemma4_core.model.spans import Span
from gemma4_core.ops import Operations
from gemma4_core.ops.attention import KeyValues
from gemma4_core.ops.graphs import upload
from gemma4_core.weights import Weight

Recompute = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


@dataclass(frozen=True)
class Inputs:
    """What the layers start from: stream ``h [B, T, H]`` and per-layer inputs ``ple [B, T, layers, P]`` if any."""

    h: Tensor
    ple: Tensor | None

    def last_row(self, row: int | UOp) -> Inputs:
        return Inputs(self.h[:, row : row + 1], None if self.ple is None else self.ple[:, row : row + 1])

    def layer(self, index: int) -> Tensor | None:
        return None if self.ple is None else self.ple[:, :, index]


def rounded(value: float, dtype: DType) -> float:
    """A constant as the dtype stores it: the embedding scale is rounded to the weight dtype before use."""
    if dtype != dtypes.bfloat16:
        return float(np.float32(value))
    bits = int(np.float32(value).view(np.uint32))
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000  # to nearest, ties to even
    return float(np.uint32(bits).view(np.float32))


Found = TypeVar("Found")


def below(start: str, named: Mapping[str, Found]) -> dict[str, Found]:
    """What has a name that starts so, by the rest of its name."""
    return {name.removeprefix(start): value for name, value in named.items() if name.startswith(start)}


class TextDecoder:
    """Weights and forward pass of the text model. Tensors are found by name below ``prefix``."""

    def __init__(
        self, text: TextConfig, prefix: str, places: dict[str, Weight], tensors: dict[str, Tensor], dtype: DType
    ) -> None:
        self.config, self.dtype = text, dtype
        self.embedding = places[prefix + "embed_tokens.weight"]
        self.norm = tensors[prefix + "norm.weight"]
        self.per_layer = text.hidden_size_per_layer_input
        self.ple_table = places.get(prefix + "embed_tokens_per_layer.weight")
        """None for models without per-layer embeddings, or where the table stays off the device."""
        if self.per_layer:
            self.ple_projection = places[prefix + "per_layer_model_projection.weight"]
            self.ple_norm = tensors[prefix + "per_layer_projection_norm.weight"]
        self.layers = []
        for layer in text.layers:
            start = f"{prefix}layers.{layer.index}."
            self.layers.append(DecoderLayer(layer, text, below(start, places), below(start, tensors)))
        self.device = self.norm.device
        self._tables: dict[int, Rotation] = {}

    @cached_property
    def layer_numbers(self) -> list[Tensor]:
        """int32 ``[1]`` on the device for each layer: kernels that are the same in all layers read which one it is."""
        return [upload(np.array([layer.config.index], np.int32), str(self.device)) for layer in self.layers]

    def rotation_table(self, positions: int) -> Rotation:
        """Rotary tables for positions below ``positions``; made once per size, so ask with few sizes."""
        if positions not in self._tables:
            kinds = [next((x for x in self.config.layers if x.is_full is full), None) for full in (False, True)]
            device, dtype = str(self.device), self.dtype
            pairs = [rope_table(x, positions, device, dtype) if x is not None else None for x in kinds]
            known = next(pair for pair in pairs if pair is not None)
            self._tables[positions] = Rotation(pairs[0] or known, pairs[1] or known)
        return self._tables[positions]

    def embed(self, ids: Tensor) -> Tensor:
        """Scaled rows of the embedding table: ids ``[B, T]`` to ``[B, T, H]``."""
        return self.scaled(matrix(self.embedding).rows(ids))

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows of the embedding table as the stream begins with them."""
        return rows.cast(self.dtype) * rounded(self.config.hidden_size**0.5, self.dtype)

    def inputs(self, ids: Tensor, h: Tensor, ops: Operations, ple_rows: Tensor | None = None) -> Inputs:
        """Per-layer inputs for the stream ``h [B, T, H]``. ``ids`` hold the pad id where a soft token stands.

        ``ple_rows [B, T, layers * P]`` are the table's rows where the table is not on the device.
        """
        if not self.per_layer:
            return Inputs(h, None)
        shape = (*h.shape[:2], self.config.num_hidden_layers, self.per_layer)
        if ple_rows is None:
            assert self.ple_table is not None
            ple_rows = matrix(self.ple_table).rows(ids)
        # [B, T, layers * P] -> [B, T, layers, P]
        token = (ple_rows.cast(self.dtype) * rounded(self.per_layer**0.5, self.dtype)).reshape(*shape)
        context = scale(ops.linear(h, matrix(self.ple_projection)), self.config.hidden_size**-0.5)
        context = ops.rms_norm(context.reshape(*shape), self.ple_norm, self.config.rms_norm_eps)
        return Inputs(h, scale(context + token, 2**-0.5))

    def run(
        self,
        inputs: Inputs,
        span: Span,
        rotation: Rotation,
        ops: Operations,
        last: int | UOp | None = None,
        wrap: Recompute | None = None,
    ) -> Tensor:
        """All layers and the final norm: ``[B, T, H]``.

        With ``last`` only that row's output is wanted, ``[B, 1, H]``: layers that share K/V run for it alone.
        ``wrap`` may turn each layer into one that is recomputed in the backward pass.
        """
        h = inputs.h
        shared: dict[int, KeyValues] = {}
        donors = {layer.donor for layer in self.config.layers if layer.donor is not None}
        first_shared = next((x.index for x in self.config.layers if x.is_shared), len(self.layers))
        for layer in self.layers:
            if last is not None and layer.config.index == first_shared:
                h, inputs, rotation = h[:, last : last + 1], inputs.last_row(last), rotation.last_row(last)
                shared = {index: kv.last_row(last) for index, kv in shared.items()}
                last = None
            kv = self._keys_values(layer, h, span, rotation, shared, ops)
            if layer.config.index in donors:
                shared[layer.config.index] = kv
            step = wrap(layer) if wrap else layer
            h = step(h, kv, inputs.layer(layer.config.index), rotation, ops)
        if last is not None:
            h = h[:, last : last + 1]
        return ops.rms_norm(h, self.norm, self.config.rms_norm_eps)

    def _keys_values(
        self,
        layer: DecoderLayer,
        h: Tensor,
        span: Span,
        rotation: Rotation,
        shared: dict[int, KeyValues],
        ops: Operations,
    ) -> KeyValues:
        config: LayerConfig = layer.config
        return shared[config.donor] if config.donor is not None else layer.keys_values(h, rotation, span, ops)

    def logits(self, h: Tensor, ops: Operations) -> Tensor:
        """``[..., H]`` to soft-capped fp32 logits ``[..., V]``; the head is the unscaled embedding table."""
        return ops.logits(h, matrix(self.embedding), self.config.final_logit_softcapping)
