"""Batches that fit a model, as arrays of few different shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.model.differentiable import check_length
from gemma4_core.model.ids import padded_length
from gemma4_core.model.media import PlacedPrompt, place_arranged
from gemma4_core.training.batch import IGNORED, GemmaTrainingBatch, check_segments, checked

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


@dataclass(frozen=True)
class CheckedBatch:
    """A batch that fits the model."""

    ids: np.ndarray
    """int32 ``[B, T]``."""
    targets: np.ndarray
    """int32 ``[B, T]``, -100 where there is none."""
    segments: np.ndarray | None
    media: dict[str, Any]
    placed: PlacedPrompt | None = None
    """Ids with the media arranged on the host; None without, and where one of their towers does not arrange."""

    @classmethod
    def of(cls, model: GemmaModel, batch: GemmaTrainingBatch) -> CheckedBatch:
        """Raises InputError for a batch that does not fit. Rows are padded to a few lengths: nothing looks ahead, so
        padding changes nothing but rounding."""
        ids, targets = checked(model, batch)
        check_length(model, ids)
        segments, media = check_segments(batch.segments, ids), batch.media
        rows, length = ids.shape
        least = min(-(-model.operations.least_tokens // rows), model.max_context)
        more = padded_length(max(length, least), model.max_context) - length
        ids, targets = filled(ids, more, model.config.pad_token_id), filled(targets, more, IGNORED)
        if segments is not None:
            segments = filled(segments, more, -1)
        return cls(ids, targets, segments, media, place_arranged(model, ids, media))

    @property
    def count(self) -> int:
        """Targets."""
        return int((self.targets >= 0).sum())

    @property
    def arranged(self) -> bool:
        """Whether its media, if any, are arranged on the host, so that their towers may be part of a program."""
        return not self.media or self.placed is not None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a pass takes, by name; arrays of media under the tower's name and a number."""
        found = {"ids": self.ids, "targets": self.targets, "segments": self.segments}
        if self.placed is not None:
            p = self.placed
            found |= {"ids": p.ids, "soft": p.soft, "positions": p.soft_positions, "blocks": p.blocks}
            found |= {f"{name}/{i}": a for name, arrays in p.arranged.items() for i, a in enumerate(arrays)}
        return {name: array for name, array in found.items() if array is not None}


def filled(rows: np.ndarray, more: int, value: int) -> np.ndarray:
    """``rows [B, T]`` with so many positions behind each."""
    return np.pad(rows, ((0, 0), (0, more)), constant_values=value) if more > 0 else rows
