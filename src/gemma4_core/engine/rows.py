"""Making ``Rows`` of prompts, and sizes that captured graphs are made for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemma4_core.contracts.rows import MediaRows, Rows, SamplingRows
from gemma4_core.model.ids import split
from gemma4_core.model.media import PlacedPrompt

GREEDY = np.array([0, 0, 1, 0, 1, 0, 0], np.float32)
"""The ``params`` of a row that takes its largest logit."""


def greedy_rows(count: int) -> SamplingRows:
    """Rows that all take their largest logit."""
    return SamplingRows(np.tile(GREEDY, (count, 1)), np.zeros(count, np.uint32))


def bucket(count: int) -> int:
    """The next power of two: graphs are captured for few sizes."""
    return 1 << max(count - 1, 0).bit_length()


def prompt_rows(
    placed: PlacedPrompt, row: int, start: int, stop: int, *, slot: int, at: int, wanted: Sequence[int] | None = None
) -> Rows:
    """Positions ``start … stop - 1`` of one row of a prompt, as rows of a slot from position ``at`` on. ``wanted``
    counts from the first of them; None is all."""
    here, count = slice(start, stop), stop - start
    media = None
    if placed.soft is not None and placed.soft_tokens is not None and (placed.soft[row, here] >= 0).any():
        blocks = None if placed.blocks is None else placed.blocks[row, here]
        media = MediaRows(placed.soft_tokens, placed.soft[row, here], blocks)
    chosen = np.arange(count, dtype=np.int32) if wanted is None else np.array(wanted, np.int32)
    positions = np.arange(at, at + count, dtype=np.int32)
    return Rows(placed.ids[row, here], np.full(count, slot, np.int32), positions, chosen, media)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several slots, none of them with media, as one call. Those of one slot may have media."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(part.count for part in parts[:-1])])
    return Rows(
        np.concatenate([np.asarray(part.ids) for part in parts]),
        np.concatenate([part.slot for part in parts]),
        np.concatenate([part.position for part in parts]),
        np.concatenate([part.wanted + first for part, first in zip(parts, firsts, strict=True)]).astype(np.int32),
    )


def chunks(placed: PlacedPrompt, row: int, skip: int, size: int) -> list[tuple[int, int]]:
    """First positions and ends of the chunks that a prompt goes through from ``skip`` on, no media block cut."""
    blocks = None if placed.blocks is None else placed.blocks[row : row + 1, skip:]
    return [(skip + start, skip + stop) for start, stop in split(placed.ids.shape[1] - skip, size, blocks)]


def common_ids(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    low, high = 0, min(len(ours), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if ours[:middle] == theirs[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
