"""The C structures of ``entry.c`` and how they are filled from a model."""

from __future__ import annotations

import ctypes

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.weights import ExpertStack, Matrix
from gemma4_plugins.devices.stored_weights import stored

STORAGE = {dtypes.float32: 0, dtypes.bfloat16: 1, dtypes.int8: 2}
POINTER, INTEGER, FLOAT = ctypes.c_uint64, ctypes.c_int64, ctypes.c_float


class CMatrix(ctypes.Structure):
    """``Matrix``: storage, row scales, storage type and size."""

    _fields_ = [("data", POINTER), ("scale", POINTER), ("type", INTEGER), ("rows", INTEGER), ("cols", INTEGER)]


MATRICES = (
    "q",
    "k",
    "v",
    "o",
    "gate",
    "up",
    "down",
    "ple_gate",
    "ple_proj",
    "router",
    "expert_gate_up",
    "expert_down",
)
VECTORS = (
    "q_norm",
    "k_norm",
    "in_norm",
    "attn_norm",
    "pre_ff",
    "post_ff",
    "post_ff1",
    "pre_ff2",
    "post_ff2",
    "ple_norm",
    "router_scale",
    "expert_scale",
    "cos",
    "sin",
)


class CLayer(ctypes.Structure):
    """``Layer``."""

    _fields_ = [
        *((name, CMatrix) for name in MATRICES),
        *((name, POINTER) for name in VECTORS),
        ("keys", POINTER),
        ("values", POINTER),
        ("scalar", FLOAT),
        *((name, INTEGER) for name in ("head_dim", "kv_heads", "slots", "window", "ff")),
    ]


BUFFERS = (
    "q",
    "k",
    "v",
    "mixed",
    "a",
    "b",
    "act",
    "ple_ctx",
    "ple_in",
    "scores",
    "router_out",
    "scratch",
)


CHUNK_BUFFERS = (
    "chunk_h", "chunk_x", "chunk_wide", "chunk_other", "chunk_ple", "chunk_parts", "chunk_ready", "chunk_marks",
    "chunk_tiles", "chunk_own", "chunk_room",
)  # fmt: skip


class CCall(ctypes.Structure):
    """``Call``."""

    _fields_ = [
        *((name, INTEGER) for name in ("decode", "count", "runs", "wanted_count")),
        *((name, POINTER) for name in ("ids", "slot", "position", "first", "wanted", "wanted_slot", "wanted_position")),
        *((name, POINTER) for name in ("alone", "until", "soft", "is_soft", "hidden", "logits", "partial", "tokens")),
        *((name, POINTER) for name in ("logprobs", "params", "seed", "counts", "bias", "mask", "drafted")),
        ("drafts", INTEGER),
    ]


class CStep(ctypes.Structure):
    """``Step``."""

    _fields_ = [
        ("layers", POINTER),
        ("slots", POINTER),
        *(
            (name, INTEGER)
            for name in (
                "layer_count",
                "hidden",
                "heads",
                "vocab",
                "ple",
                "experts",
                "top",
                "expert_ff",
                "kv_type",
                "threads",
            )
        ),
        *((name, FLOAT) for name in ("eps", "embed_scale", "ple_scale", "softcap")),
        *((name, CMatrix) for name in ("embed", "ple_table", "ple_model_proj")),
        ("ple_proj_norm", POINTER),
        ("norm", POINTER),
        *((name, POINTER) for name in BUFFERS),
        ("scratch_per_thread", INTEGER),
        *((name, POINTER) for name in CHUNK_BUFFERS),
        ("chunk_room_per_thread", INTEGER),
        ("first_shared", INTEGER),
        *((name, POINTER) for name in ("choosing", "sync")),
        ("suppressed_count", INTEGER),
        ("suppressed", POINTER),
    ]


def address(tensor: Tensor) -> int:
    """Where a realized CPU tensor lies in memory."""
    return int(tensor.uop.buffer.ensure_allocated().get_buf("CPU").va_addr)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a whole realized buffer on the CPU."""
    return str(tensor.device).startswith("CPU") and tensor.uop.has_buffer_identity() and tensor.uop.is_realized


def supported(matrix: Matrix | ExpertStack | None) -> bool:
    """Whether the kernels read this storage in place."""
    parts = stored(matrix)
    scaled = "_scale" in parts
    known = bool(parts) and parts[""].dtype in STORAGE and scaled == (parts[""].dtype == dtypes.int8)
    return known and all(map(is_plain, parts.values()))


def values(tensor: Tensor) -> np.ndarray:
    """A tensor's values in fp32; those that lie in memory are read there, which spares a kernel for each shape."""
    if not is_plain(tensor) or tensor.dtype not in (dtypes.float32, dtypes.bfloat16):
        return tensor.cast(dtypes.float32).numpy()
    number = ctypes.c_uint16 if tensor.dtype == dtypes.bfloat16 else ctypes.c_uint32
    bits = np.ctypeslib.as_array((number * tensor.numel()).from_address(address(tensor))).astype(np.uint32)
    wide = bits << 16 if tensor.dtype == dtypes.bfloat16 else bits
    return wide.view(np.float32).reshape(tuple(int(n) for n in tensor.shape))


class Arena:
    """Memory that the C side refers to; lives as long as this object."""

    def __init__(self) -> None:
        self.references: list[object] = []

    def array(self, array: np.ndarray) -> int:
        """Address of a contiguous array that lives as long as the arena."""
        array = np.ascontiguousarray(array)
        self.references.append(array)
        return int(array.ctypes.data)

    def floats(self, count: int) -> int:
        """Address of zeroed fp32 memory on a cache line of its own."""
        array = np.zeros(count + 32, np.float32)
        self.references.append(array)
        return (int(array.ctypes.data) + 63) & ~63

    def vector(self, tensor: Tensor | None) -> int:
        """Address of a tensor's values in fp32, 0 for None."""
        return 0 if tensor is None else self.array(values(tensor))

    def matrix(self, matrix: Matrix | ExpertStack | None) -> CMatrix:
        """A matrix, or a stack as one matrix of all experts' rows; zeros for None."""
        if matrix is None:
            return CMatrix()
        parts = matrix.parts()
        data = parts[""]
        self.references.append(matrix)
        scale = 0
        if "_scale" in parts:
            scale = self.vector(parts["_scale"].reshape(-1))  # one scale per row, rows of all experts
        *rows, cols = (int(n) for n in data.shape)
        return CMatrix(address(data), scale, STORAGE[data.dtype], int(np.prod(rows)), cols)
