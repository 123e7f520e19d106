"""A 4-bit format for tests: rows of numbers from -7 to 7, two in a byte, with one fp32 scale each, in safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_core import (
    CheckpointFormat,
    Context,
    Encoded,
    RowSource,
    TensorInfo,
    WeightBlocks,
    hookimpl,
    quantizable,
    save_safetensors,
)
from gemma4_core.checkpoint import CheckpointFiles

SCALE = ".scale"


class FourBitSource(RowSource):
    def __init__(self, context: Context) -> None:
        self.files = CheckpointFiles.open(context)
        self.packed = set(context.manifest["tensors"])
        stored = self.files.infos
        self.infos = {
            name: TensorInfo("I4", (*info.shape[:-1], 2 * info.shape[-1]), info.nbytes, 0.5 / 7)
            if name in self.packed else info
            for name, info in stored.items() if name.removesuffix(SCALE) not in self.packed - {name}
        }

    def read(self, name: str, rows: np.ndarray | None) -> np.ndarray:
        if name not in self.packed:
            every = self.files.rows(name, in_memory=False)
            whole = np.arange(self.infos[name].shape[0]) if rows is None else rows
            return every(whole)
        packed = np.frombuffer(self.files.bytes(name), np.uint8).reshape(self.files.infos[name].shape)
        scale = self.files.array(name + SCALE)
        packed, scale = (packed, scale) if rows is None else (packed[rows], scale[rows])
        numbers = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1).astype(np.float32) - 8
        return numbers * scale[..., None]

    def close(self) -> None:
        self.files.close()


def packable(weight: WeightBlocks) -> bool:
    """Whether its rows are pairs of numbers that are worth packing."""
    return quantizable(weight.name, weight.role) and weight.shape[-1] % 2 == 0


def encode(weight: WeightBlocks) -> Encoded | None:
    if not packable(weight):
        return None
    rows, width = weight.shape[:-1], weight.shape[-1]
    return Encoded({"": ("U8", (*rows, width // 2)), SCALE: ("F32", rows)}, lambda: packed(weight))


def packed(weight: WeightBlocks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows in weight.blocks():
        scale = np.maximum(np.abs(rows).max(-1), 1e-30).astype(np.float32) / 7
        numbers = (np.rint(rows / scale[..., None]) + 8).astype(np.uint8)
        yield numbers[..., ::2] | numbers[..., 1::2] << 4, scale


def save(weights: Sequence[WeightBlocks], folder: Path, context: Context) -> dict[str, Any]:
    save_safetensors(weights, folder, encode)
    return {"tensors": [weight.name for weight in weights if packable(weight)]}


def matches(context: Context) -> bool:
    return isinstance(context.manifest, dict) and context.manifest.get("name") == "four-bits"


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    return [CheckpointFormat("four-bits", "4-bit rows", FourBitSource, save, matches, quantizes=True)]
