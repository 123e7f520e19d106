"""Features as they come in, arranged for the tower: the patches of one soft token side by side, padded to few sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma4_core.contracts.arranged_media import ArrangedMedia
from gemma4_core.errors import InputError
from gemma4_core.processing.arrays import as_array
from gemma4_plugins.modalities.vision.config import VisionConfig

KEYWORDS = ("pixel_values", "image_position_ids")
SIZES = (16, 70, 140, 280, 560, 1120)
"""Soft tokens that graphs are captured for; an image runs at the next size, padding masked."""
ROWS = 128
"""Slots are a multiple of it: matrix units work on tiles."""


@dataclass(frozen=True)
class Slots:
    """One image. Slot ``k * k * t + i`` holds the i-th patch of soft token t, or padding."""

    pixels: np.ndarray
    """fp32 ``[slots, patch_size * patch_size * 3]``, 0 in padding."""
    positions: np.ndarray
    """int32 ``[slots, 2]``: column and row, -1 in padding."""
    tokens: int
    """Soft tokens that are real; the other slots are padding."""


def padded_tokens(tokens: int) -> int:
    """The captured size that holds so many soft tokens."""
    return next((size for size in SIZES if size >= tokens), -(-tokens // SIZES[-1]) * SIZES[-1])


def read_features(features: Mapping[str, Any], config: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Patches fp32 ``[images, patches, p * p * 3]`` and positions int64 ``[images, patches, 2]``, checked.

    A single image may come without the first axis. Raises InputError.
    """
    names = [name for name in KEYWORDS if features.get(name) is None]
    if names:
        raise InputError(f"{names[0]} is missing; pass {' and '.join(KEYWORDS)} as the processor returns them")
    pixels, positions = (as_array(features[name], name) for name in KEYWORDS)
    pixels, positions = (a[None] if a.ndim == 2 else a for a in (pixels, positions))
    width = config.patch_size**2 * 3
    if pixels.ndim != 3 or pixels.shape[-1] != width or pixels.dtype.kind not in "fiu":
        raise InputError(f"{KEYWORDS[0]}: shape {list(pixels.shape)}, expected [images, patches, {width}]")
    if positions.shape != (*pixels.shape[:2], 2) or positions.dtype.kind not in "iu":
        raise InputError(f"{KEYWORDS[1]}: shape {list(positions.shape)} of {positions.dtype}, expected whole numbers "
                         f"{[*pixels.shape[:2], 2]}")
    positions = positions.astype(np.int64, copy=False)
    if positions.size and positions.max() >= config.position_embedding_size:
        raise InputError(f"{KEYWORDS[1]}: {positions.max()} is not below the {config.position_embedding_size} "
                         "positions of this model")
    return pixels.astype(np.float32, copy=False), positions


@dataclass(frozen=True)
class Layout:
    """Where the patches of one image go: patch ``patches[i]`` to slot ``slots[i]``."""

    patches: np.ndarray
    slots: np.ndarray
    tokens: int
    """Soft tokens that they make."""


def lay_out(positions: np.ndarray, pool: int, name: str) -> Layout:
    """Order the patches at ``positions [patches, 2]`` of one image by the soft token that they are pooled into.

    Soft tokens are numbered row by row over the pooled grid; as wide as the rightmost patch, as the reference does.
    """
    patches = np.flatnonzero((positions >= 0).all(-1))
    positions = positions[patches]
    if not len(positions):
        raise InputError(f"{name}: an image has no patches")
    columns = (int(positions[:, 0].max()) + 1) // pool
    token = positions[:, 0] // pool + columns * (positions[:, 1] // pool)
    found, which, counts = np.unique(token, return_inverse=True, return_counts=True)
    if counts.max() > pool * pool:
        raise InputError(f"{name}: {counts.max()} patches fall into one soft token of {pool} x {pool} patches")
    order = np.argsort(which, kind="stable")
    starts = np.cumsum(counts) - counts
    slots = np.empty(len(which), np.int64)
    slots[order] = which[order] * pool * pool + np.arange(len(which)) - starts[which[order]]
    return Layout(patches, slots, len(found))


def arrange(pixels: np.ndarray, positions: np.ndarray, pool: int, name: str) -> Slots:
    """One image ``[patches, …]`` in its slots."""
    layout = lay_out(positions, pool, name)
    total = -(-padded_tokens(layout.tokens) * pool * pool // ROWS) * ROWS
    patches = np.full(total, -1)
    patches[layout.slots] = layout.patches
    padding = patches < 0
    # one pass over the pixels: what goes to padding is taken from the last patch and cleared
    out_pixels, out_positions = pixels[patches], positions[patches].astype(np.int32)
    out_pixels[padding], out_positions[padding] = 0, -1
    return Slots(out_pixels, out_positions, layout.tokens)


def arrange_together(pixels: np.ndarray, positions: np.ndarray, pool: int, name: str) -> ArrangedMedia:
    """Several images ``[images, patches, …]``, all padded to the captured size of the largest."""
    keys = [place.tobytes() for place in positions]
    known = {key: lay_out(place, pool, name) for key, place in dict(zip(keys, positions, strict=True)).items()}
    layouts = [known[key] for key in keys]
    tokens = padded_tokens(max((layout.tokens for layout in layouts), default=0))
    shape = (len(layouts), tokens * pool * pool)
    out_pixels, out_positions = np.zeros((*shape, pixels.shape[2]), np.float32), np.full((*shape, 2), -1, np.int32)
    for index, layout in enumerate(layouts):
        out_pixels[index, layout.slots] = pixels[index, layout.patches]
        out_positions[index, layout.slots] = positions[index, layout.patches]
    rows = [index * tokens + np.arange(layout.tokens) for index, layout in enumerate(layouts)]
    return ArrangedMedia((out_pixels, out_positions), rows, len(layouts) * tokens)
