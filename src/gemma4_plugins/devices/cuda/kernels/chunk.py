"""Kernels and device memory that a model's chunks of positions share."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.config import TextConfig
from gemma4_core.engine.rows import bucket
from gemma4_core.ops.graphs import upload
from gemma4_core.weights import Weight
from gemma4_plugins.devices.cuda.kernels import launch
from gemma4_plugins.devices.cuda.kernels.plan import model_constants, of_kind
from gemma4_plugins.devices.cuda.kernels.sources import chunk_source, device_source, wide_source
from gemma4_plugins.devices.cuda.kernels.table import scale_of, tensor_of

CHUNK = 1024
"""Positions that run together."""
MOST_PARTS = 4
"""Parts along K of a product with few tiles."""
GEMM_BYTES = {128: 4 * (128 + 256) * 64, 64: 4 * (64 + 256) * 64}
"""Shared memory of the products with tiles of so many rows: four stages."""
WIDE_BYTES = 4 * (128 + 256) * 128
ROW_BYTES = 64
"""Shared memory of the kernels that work on one position."""
HOPPER = 9


def attention_bytes(head_dim: int) -> int:
    """Shared memory of the attention kernel, as its ``ChunkShape`` lays it out."""
    keys, stride = (32 if head_dim > 256 else 64), head_dim * 2 + 16
    return 64 * stride + 2 * keys * stride + 64 * (keys * 2 + 16) + 2 * 64 * 4


def kernel_needs(text: TextConfig) -> dict[str, tuple[int, int]]:
    """Threads and shared memory of each kernel that a model uses."""
    names = {"expand": 0, "gemm_plain": GEMM_BYTES[128], "gemm_low": GEMM_BYTES[64], "gemm_gated": GEMM_BYTES[128]}
    names |= dict.fromkeys(("embed_rows", "norm_rows", "heads_sliding", "heads_full"), ROW_BYTES)
    names["attend_sliding"] = attention_bytes(of_kind(text, False).head_dim)
    names["attend_full"] = attention_bytes(of_kind(text, True).head_dim)
    if text.hidden_size_per_layer_input:
        names |= dict.fromkeys(("ple_rows", "ple_gate"), ROW_BYTES)
    found = {name: (256, shared) for name, shared in names.items()}
    if text.enable_moe_block:
        found |= dict.fromkeys(("join_branches", "gather_experts"), (256, ROW_BYTES))
        found |= dict.fromkeys(("choose_rows", "plan_experts", "place_rows"), (32, ROW_BYTES))
        found |= dict.fromkeys(("gemm_experts_gated", "gemm_experts_down"), (256, GEMM_BYTES[64]))
    return found


def fits(text: TextConfig) -> bool:
    """Whether every kernel's shared memory is to be had on this device."""
    most = launch.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
    return all(shared <= most for _, shared in kernel_needs(text).values())


def passing(tensor: Tensor | None) -> ctypes.c_uint64:
    """The address of a tensor that need not live on, as an argument; the caller keeps it until the kernel has run."""
    return ctypes.c_uint64(0 if tensor is None else launch.address(tensor))


class Kernels:
    """The compiled kernels of one model."""

    def __init__(self, text: TextConfig) -> None:
        self.by_name = launch.kernels(device_source(chunk_source(model_constants(text))), kernel_needs(text))
        self.blocks = launch.attribute("MULTIPROCESSOR_COUNT")
        self._scratch: Tensor | None = None
        self.known: dict[int, tuple[Tensor, ctypes.c_uint64]] = {}
        self.wide = False
        if launch.attribute("COMPUTE_CAPABILITY_MAJOR") == HOPPER:
            needs = dict.fromkeys(("wide_plain", "wide_gated"), (256, WIDE_BYTES))
            self.by_name |= launch.kernels(device_source(wide_source()), needs, "a")
            self.wide = self._wide_agrees()

    def _wide_agrees(self) -> bool:
        """Whether Hopper's form of a product gives what the general form gives, on a small product of noise. Its
        operands' layout is the instruction's own, which nothing else would notice to be wrong."""
        rows, columns, inner = 128, 256, 192
        noise = np.random.default_rng(0)
        draw = lambda count: noise.standard_normal((count, inner)).astype(np.float32)  # noqa: E731
        a, w = (upload(draw(count), launch.DEVICE, dtypes.bfloat16) for count in (rows, columns))
        results = []
        for name in ("wide_plain", "gemm_plain"):
            c = Tensor.zeros(rows, columns, device=launch.DEVICE, dtype=dtypes.float32).contiguous().realize()
            nothing = [None] * 5
            self(name, 1, passing(a), passing(w), *nothing, passing(c), rows, columns, inner, columns, columns, 1)
            results.append(c.numpy())
        return float(np.abs(results[0] - results[1]).max()) < 1e-2

    def __call__(self, name: str, width: int, *arguments: Any, height: int = 1, depth: int = 1) -> None:
        """Launch with tensors that live as long as the model, None, numbers of 32 bits and ctypes values."""
        self.by_name[name].launch(width, [self._argument(x) for x in arguments], height, depth)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self.known:
                self.known[id(value)] = (value, passing(value))
            return self.known[id(value)][1]
        if value is None:
            return ctypes.c_uint64(0)
        if isinstance(value, int):
            return ctypes.c_int32(value)
        return ctypes.c_float(value) if isinstance(value, float) else value

    def parts(self, rows: int, columns: int, inner: int) -> int:
        """Parts along K such that a product's tiles fill the device."""
        step = 128 if rows > 64 else 64
        tiles = -(-rows // step) * -(-columns // 256)
        return max(1, min(MOST_PARTS, 2 * self.blocks // tiles, inner // 512))

    def weights(self, held: Sequence[Weight | None]) -> tuple[list[Any], list[Tensor | None]]:
        """Matrices as the products read them, and their row scales: int8 ones become bf16 in scratch memory, one below
        the other, where the next product reads them."""
        scales = [scale_of(w) for w in held]
        if not any(scale is not None for scale in scales):
            return [tensor_of(w) for w in held], scales
        at, places = launch.address(self.scratch(held)), []
        for weight in held:
            tensor = tensor_of(weight)
            count = tensor.numel() if tensor is not None else 0
            places.append(ctypes.c_uint64(at))
            if tensor is not None:
                blocks = min(8 * self.blocks, -(-count // 4096))
                self("expand", blocks, tensor, places[-1], ctypes.c_uint64(count))
            at += 2 * count
        return places, scales

    def scratch(self, held: Sequence[Weight | None]) -> Tensor:
        """Room for these matrices in bf16; grows to the largest request."""
        size = sum(t.numel() for t in map(tensor_of, held) if t is not None)
        if self._scratch is None or self._scratch.numel() < size:
            launch.wait()
            self._scratch = None
            self._scratch = Tensor.empty(size, dtype=dtypes.bfloat16, device=launch.DEVICE)
            self._scratch.uop.buffer.ensure_allocated()
        return self._scratch

    def product(
        self, a: Tensor | None, held: Sequence[Weight], c: Tensor | None, rows: int, columns: int, inner: int,
        splits: tuple[int, int] | None = None, parts: int = 0,
    ) -> None:  # fmt: skip
        """c = a times the transposed matrices, which lie one below the other: bf16, or fp32 in ``parts`` to be added.

        ``columns`` may be fewer than the last matrix has rows.
        """
        matrices, scales = self.weights(held)
        none: list[Any] = [None] * (3 - len(matrices))
        first, second = splits if splits is not None else (columns, columns)
        tall = rows > 64
        name = ("wide_plain" if self.wide and inner % 64 == 0 else "gemm_plain") if tall else "gemm_low"
        self(name, -(-rows // (128 if tall else 64)), a, *matrices, *none, *scales, *none, c, rows, columns, inner, first,
             second, parts, height=-(-columns // 256), depth=max(parts, 1))  # fmt: skip

    def gated(self, a: Tensor, gate: Weight, up: Weight, c: Tensor, rows: int, columns: int, inner: int) -> None:
        """c = gelu(a · gate^T) * (a · up^T), bf16."""
        matrices, scales = self.weights([gate, up])
        name = "wide_gated" if self.wide and inner % 64 == 0 else "gemm_gated"
        self(name, -(-rows // 128), a, *matrices, *scales, c, rows, columns, inner, height=-(-columns // 128))


@dataclass(frozen=True)
class Experts:
    """Scratch of the mixture: choices, and their order by expert."""

    chosen: Tensor
    weight: Tensor
    counts: Tensor
    first: Tensor
    next: Tensor
    source: Tensor
    place: Tensor
    tile_expert: Tensor
    tile_row: Tensor
    inner: Tensor
    out: Tensor
    inputs: Tensor
    sums: Tensor
    joined: Tensor
    tiles: int


class Buffers:
    """Device memory for one chunk; the model's own, since chunks run one after another."""

    def __init__(self, text: TextConfig, device: str) -> None:
        width = max(text.num_attention_heads * x.head_dim for x in text.layers)
        keys = max(2 * x.num_key_value_heads * x.head_dim for x in text.layers)
        per_layer, hidden = text.hidden_size_per_layer_input or 0, text.hidden_size
        bf16, fp32, int32 = dtypes.bfloat16, dtypes.float32, dtypes.int32
        make = lambda *shape, dtype=bf16: Tensor.zeros(*shape, dtype=dtype, device=device).contiguous().realize()  # noqa: E731
        self.h, self.y = make(CHUNK, hidden, dtype=fp32), make(MOST_PARTS, CHUNK, hidden, dtype=fp32)
        self.x, self.z = (make(CHUNK, hidden) for _ in range(2))
        self.qkv, self.queries, self.mixed = (make(CHUNK, n) for n in (width + keys, width, width))
        self.inner = make(CHUNK, max(x.intermediate_size for x in text.layers))
        inputs = text.num_hidden_layers * per_layer
        self.context, self.ple = (make(CHUNK, inputs) if per_layer else None for _ in range(2))
        self.gate, self.gated = (make(CHUNK, per_layer) if per_layer else None for _ in range(2))
        self._states: dict[int, Tensor] = {}
        self.experts: Experts | None = None
        if text.enable_moe_block:
            top, count, inner = text.top_k_experts, text.num_experts, text.moe_intermediate_size
            rows, tiles = CHUNK * top, CHUNK * top // 64 + count
            wide = lambda *shape: make(*shape, dtype=int32)  # noqa: E731
            self.experts = Experts(
                chosen=wide(CHUNK, top), weight=make(CHUNK, top, dtype=fp32), counts=wide(count), first=wide(count + 1),
                next=wide(count), source=wide(rows), place=wide(rows), tile_expert=wide(tiles), tile_row=wide(tiles),
                inner=make(rows, inner), out=make(rows, hidden), inputs=make(CHUNK, hidden), sums=make(CHUNK, count),
                joined=make(CHUNK, hidden, dtype=fp32), tiles=tiles,
            )  # fmt: skip

    def states(self, count: int) -> Tensor:
        """bf16 ``[count or more, H]`` for final hidden states: one of few sizes, since graphs are captured for each."""
        size = bucket(count)
        if size not in self._states:
            self._states[size] = Tensor.zeros(size, self.x.shape[1], dtype=self.x.dtype, device=self.x.device)
            self._states[size] = self._states[size].contiguous().realize()
        return self._states[size]
