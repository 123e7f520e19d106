"""Token ids from outside: checked, and split into chunks that do not cut media blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemma4_core.config import TextConfig
from gemma4_core.errors import InputError


def check_ids(ids: Any, vocab_size: int, what: str = "token ids") -> np.ndarray:
    """Ids as int32 ``[B, T]``: a flat list is one row. Accepts lists, numpy arrays and Tensors.

    Raises InputError for anything that is not a rectangle of whole numbers inside the vocabulary.
    """
    if hasattr(ids, "numpy"):
        ids = ids.numpy()
    try:
        array = np.asarray(ids)
    except ValueError:
        raise InputError(f"{what}: rows differ in length; pad them or call once per row") from None
    if array.ndim == 0:
        raise InputError(f"{what}: {str(ids)[:100]!r} is not a list of ids; expected a flat list or [rows, tokens]")
    if array.size == 0:
        raise InputError(f"{what}: the prompt is empty; give at least one token")
    if array.ndim not in (1, 2):
        raise InputError(f"{what}: shape {list(array.shape)}; expected a flat list or [rows, tokens]")
    if array.dtype.kind not in "iu":
        bad = next(
            (x for x in array.reshape(-1).tolist() if not isinstance(x, int) or isinstance(x, bool)), array.dtype
        )
        raise InputError(f"{what}: {bad!r} is not a whole number below {vocab_size}")
    outside = array[(array < 0) | (array >= vocab_size)]
    if outside.size:
        raise InputError(
            f"{what}: {outside.reshape(-1)[0]} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})"
        )
    return np.atleast_2d(array).astype(np.int32)


def check_rows(ids: np.ndarray, text: TextConfig) -> None:
    """Raise InputError for an id of the vocabulary that the per-layer embedding table has no row for."""
    outside = ids[ids >= text.usable_ids]
    if outside.size:
        raise InputError(f"token ids: {outside.reshape(-1)[0]} is in the vocabulary of {text.vocab_size} and past the "
                         f"per-layer embedding table of {text.usable_ids} rows (vocab_size_per_layer_input), which was "
                         f"not resized with it; such ids cannot be run")


SHORTEST = 32
"""Rows that are differentiated are padded to at least so many positions."""


def padded_length(length: int, limit: int) -> int:
    """The length that a row is padded to: a power of two or one and a half, at most ``limit``, so that few different
    ones come up and at most a third of a row is padding."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return max(length, min(size, limit))


def media_blocks(soft: np.ndarray) -> np.ndarray:
    """Number of the contiguous run that each True position of ``soft [B, n]`` belongs to, int32, -1 elsewhere."""
    before = np.pad(soft[:, :-1], ((0, 0), (1, 0)))
    return np.where(soft, np.cumsum(soft & ~before, axis=1) - 1, -1).astype(np.int32)


def bound(blocks: np.ndarray | None, position: int) -> bool:
    """Whether some row's media block goes on from ``position - 1`` to ``position`` of ``blocks [B, n]``."""
    if blocks is None or not 0 < position < blocks.shape[1]:
        return False
    return bool(((blocks[:, position] >= 0) & (blocks[:, position] == blocks[:, position - 1])).any())


def block_ends(blocks: np.ndarray) -> np.ndarray:
    """For each position of ``blocks [1, n]`` the index of the last one of its media block, its own outside of one."""
    ends = np.arange(blocks.shape[1])
    for index in range(len(ends) - 1, 0, -1):
        if bound(blocks, index):
            ends[index - 1] = ends[index]
    return ends


def split(count: int, size: int, blocks: np.ndarray | None) -> list[tuple[int, int]]:
    """Cut ``count`` positions into runs of at most ``size``; a media block is never cut, whatever its length."""
    runs, start = [], 0
    while start < count:
        stop = min(start + size, count)
        while stop > start and bound(blocks, stop):
            stop -= 1
        if stop == start:
            stop = start + 1
            while bound(blocks, stop):
                stop += 1
        runs.append((start, stop))
        start = stop
    return runs
