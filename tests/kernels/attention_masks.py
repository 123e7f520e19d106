"""What attention's kernels for training let positions see, in numpy: packed texts, media, windows, blocks of a band."""

from __future__ import annotations

import numpy as np
from tinygrad import Tensor

from gemma4_core.ops.attention import Pattern


def drawn_pattern(
    random: np.random.Generator, batch: int, length: int, window: int | None, segments: bool, media: bool
) -> tuple[Pattern, np.ndarray, list[np.ndarray]]:
    """A pattern, what it lets positions see, bool ``[B, T, T]``, and its arrays int32 ``[B, T]``: segments, blocks."""
    parts = np.sort(random.integers(0, 3, (batch, length)), 1).astype(np.int32)
    spots = np.where(random.random((batch, length)) < 0.5, np.arange(length) // 4, -1).astype(np.int32)
    rows, columns = np.arange(length)[:, None], np.arange(length)[None]
    seen = np.broadcast_to(columns <= rows, (batch, length, length))
    if media:
        seen = seen | ((spots[:, :, None] == spots[:, None]) & (spots >= 0)[:, :, None])
    if window is not None:
        seen = seen & (columns > rows - window)
    if segments:
        seen = seen & (parts[:, :, None] == parts[:, None])
    pattern = Pattern(window, Tensor(spots) if media else None, Tensor(parts) if segments else None)
    return pattern, seen, [*([parts] if segments else []), *([spots] if media else [])]


def of_scores(
    seen: np.ndarray, heads: int, group: int, band: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """What is seen ``[B, T, T]`` in the shape of scores, as they are or in blocks of a band; which of their rows are
    positions; and that shape."""
    batch, length = seen.shape[:2]
    if band is None:
        shape: tuple[int, ...] = (batch, heads, group, length, length)
        return np.broadcast_to(seen[:, None, None], shape), np.ones(shape[:-1], np.bool_), shape
    # [B, T, T] -> [B, 1, blocks, 1, band, 2 * band]
    blocks = -(-length // band)
    padded = np.zeros((batch, blocks * band, (blocks + 1) * band), np.bool_)
    padded[:, :length, band : band + length] = seen
    cut = np.stack([padded[:, i * band : (i + 1) * band, i * band : (i + 2) * band] for i in range(blocks)], 1)
    shape = (batch, heads, blocks, group, band, 2 * band)
    real = (np.arange(blocks * band) < length).reshape(1, 1, blocks, 1, band)
    return np.broadcast_to(cut[:, None, :, None], shape), np.broadcast_to(real, shape[:-1]), shape
