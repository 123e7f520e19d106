"""The values of every drawn parameter, and safetensors files of them (numpy only).

``draw`` produces the value of every parameter from its name and a seed, bit for bit on every machine, so that further
seeds need no committed weights.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_PREFIXES = ("model.language_model.", "model.")
_POSITIVE = {  # uniform ranges of parameters that multiply; the first pattern found in the name counts
    r"layer_scalar$": (0.7, 1.1),
    r"per_expert_scale$": (0.5, 1.5),
    r"router\.scale$": (0.5, 2.0),
    r"[qk]_norm\.weight$": (0.3, 0.7),
    r"input_min$": (-1.6, -0.7),
    r"input_max$": (0.8, 1.9),
    r"output_min$": (-2.0, -0.9),
    r"output_max$": (1.0, 2.3),
    r"std_scale$": (0.1, 0.3),
    r"^norm\.weight$": (1.0, 3.0),
    r"norm[^.]*\.weight$": (0.5, 1.5),
    r"norm_(pre_attn|post_attn|out)\.weight$": (0.5, 1.5),
}
_SPREAD = {  # standard deviations that are not 1/sqrt(fan in)
    r"embed_tokens\.weight$": 0.16,
    r"embed_tokens_per_layer\.weight$": 0.25,
    r"per_layer_model_projection\.weight$": 0.5,
    r"router\.proj\.weight$": 1.5,
    r"position_embedding_table$": 0.5,
    r"per_dim_scale$": 0.5,
    r"std_bias$": 3.0,
    r"bias$": 0.3,
}


def base_name(name: str) -> str:
    """A checkpoint name without its prefix: the same for text-only and conditional checkpoints."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def round_bf16(x: NDArray[Any]) -> F32:
    """Nearest bf16 value (ties to even) of each element, as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).reshape(np.shape(x))


def raw_words(key: str, seed: int, n: int) -> NDArray[np.uint64]:
    """``n`` stable 64-bit words: a bit generator's raw stream never changes between numpy versions."""
    return np.random.PCG64([seed, zlib.crc32(key.encode())]).random_raw(n)


def normal(key: str, seed: int, n: int) -> NDArray[np.float64]:
    """Close to normal: the sum of a word's four 16-bit pieces, exact in float64."""
    raw = raw_words(key, seed, n)
    pieces = sum(((raw >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.float64) for s in (0, 16, 32, 48))
    return (pieces - 4 * 32767.5) / (65536 / np.sqrt(3.0))


def draw(name: str, shape: tuple[int, ...], seed: int) -> F32:
    """The bf16-representable value of parameter ``name`` (prefix ignored) for ``seed``, as float32 ``shape``."""
    key, n = base_name(name), int(np.prod(shape))
    for pattern, (low, high) in _POSITIVE.items():
        if re.search(pattern, key):
            uniform = (raw_words(key, seed, n) >> np.uint64(11)) * 2.0**-53
            return round_bf16((low + (high - low) * uniform).reshape(shape))
    spread = next((v for p, v in _SPREAD.items() if re.search(p, key)), None)
    fan_in = shape[-1] if "conv" not in key else int(np.prod(shape[1:]))
    return round_bf16((normal(key, seed, n) * (spread or fan_in**-0.5)).reshape(shape))


def draw_ids(key: str, seed: int, shape: tuple[int, ...], low: int, high: int) -> I64:
    """Token ids in ``[low, high)``, stable as ``draw``."""
    words = raw_words("ids:" + key, seed, int(np.prod(shape)))
    return (low + words % np.uint64(high - low)).astype(np.int64).reshape(shape)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensor table of a safetensors file: name to dtype, shape and offsets."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header: dict[str, dict[str, Any]] = json.loads(f.read(size))
    header.pop("__metadata__", None)
    return header


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor in all ``*.safetensors`` of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tuple(t["shape"]) for file in files for name, t in read_header(file).items()}


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str = "BF16") -> None:
    """Write float arrays as ``BF16``, ``F16`` or ``F32``."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, at = [], 0
    for name, value in tensors.items():
        if dtype == "BF16":
            blob = (round_bf16(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            blob = np.asarray(value, {"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_seed(source: Path, seed: int, folder: Path, dtype: str = "BF16") -> Path:
    """A checkpoint like ``source`` (same config and tensor names) with the weights of another seed, in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*config*.json"):
        shutil.copy(file, folder / file.name)
    weights = {name: draw(name, shape, seed) for name, shape in tensor_shapes(source).items()}
    write_safetensors(folder / "model.safetensors", weights, dtype)
    return folder
