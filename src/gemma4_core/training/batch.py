"""What one training step learns from: token ids, labels, media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.model.ids import check_ids

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig
    from gemma4_core.model.model import GemmaModel

IGNORED = -100
"""The label of positions that are not trained on."""
MEDIA_FIELDS = ("pixel_values", "image_position_ids", "input_features", "input_features_mask")


@dataclass(frozen=True, eq=False)
class GemmaTrainingBatch:
    """Rows of token ids with their targets. Lists, numpy arrays and Tensors are accepted.

    Media fields take what ``prepare_inputs`` returned, in placeholder order, row by row.
    """

    input_ids: Any
    """A flat list is one row; else ``[B, T]``, short rows filled with the pad id on the right."""
    labels: Any = None
    """As ``input_ids`` and aligned with them: position t is what the model shall predict at t - 1. -100 is ignored.
    None: the ids themselves, without pad, image, audio and video placeholder ids."""
    pixel_values: Any = None
    image_position_ids: Any = None
    input_features: Any = None
    input_features_mask: Any = None
    features: Mapping[str, Any] = field(default_factory=dict)
    """What other towers take, by their keywords."""
    segments: Any = None
    """Whole numbers of the ids' shape for rows that hold several texts: positions see those of their own number."""

    @property
    def media(self) -> dict[str, Any]:
        """The media fields that are there, by ``forward_ids`` keyword."""
        found = {name: getattr(self, name) for name in MEDIA_FIELDS} | dict(self.features)
        return {name: value for name, value in found.items() if value is not None}


def checked(model: GemmaModel, batch: GemmaTrainingBatch) -> tuple[np.ndarray, np.ndarray]:
    """Ids and targets int32 ``[B, T]``: the target at t is the label at t + 1, -100 where there is none.

    Raises InputError for ids or labels outside the vocabulary, other shapes, and a batch without any target.
    """
    if not isinstance(batch, GemmaTrainingBatch):
        raise InputError(f"a training batch is a GemmaTrainingBatch, not {type(batch).__name__}")
    ids = check_ids(batch.input_ids, model.config.text_config.vocab_size)
    labels = own_labels(model.config, ids) if batch.labels is None else check_labels(model, batch.labels, ids)
    targets = np.full(ids.shape, IGNORED, np.int32)
    targets[:, :-1] = labels[:, 1:]
    if not (targets != IGNORED).any():
        raise InputError(f"the batch of shape {list(ids.shape)} has no target: after the first position of a row every "
                         f"label is {IGNORED}; give longer rows or labels")
    return ids, targets


def check_segments(segments: Any, ids: np.ndarray) -> np.ndarray | None:
    """Segments int32 of the ids' shape. Raises InputError."""
    if segments is None:
        return None
    array = np.atleast_2d(np.asarray(segments.numpy() if hasattr(segments, "numpy") else segments))
    if array.shape != ids.shape or array.dtype.kind not in "iu":
        raise InputError(f"segments are {array.dtype} {list(array.shape)}, the ids int {list(ids.shape)}; they must "
                         f"be whole numbers, aligned")
    return array.astype(np.int32)


def own_labels(config: GemmaConfig, ids: np.ndarray) -> np.ndarray:
    """The ids as their own labels; padding and soft tokens are not trained on."""
    special = (config.pad_token_id, config.image_token_id, config.audio_token_id, config.video_token_id)
    return np.where(np.isin(ids, [token for token in special if token is not None]), IGNORED, ids).astype(np.int32)


def check_labels(model: GemmaModel, labels: Any, ids: np.ndarray) -> np.ndarray:
    """Labels int32 of the ids' shape."""
    if hasattr(labels, "numpy"):
        labels = labels.numpy()
    try:
        array = np.atleast_2d(np.asarray(labels))
    except ValueError:
        raise InputError("labels: rows differ in length; fill them up with -100") from None
    if array.shape != ids.shape:
        raise InputError(f"labels have shape {list(array.shape)}, the ids {list(ids.shape)}; they must be aligned")
    if array.dtype.kind not in "iu":
        raise InputError(f"labels are {array.dtype}, not whole numbers")
    size = model.config.text_config.vocab_size
    outside = array[(array != IGNORED) & ((array < 0) | (array >= size))]
    if outside.size:
        raise InputError(f"labels: {outside.reshape(-1)[0]} is neither {IGNORED} nor inside the vocabulary of {size}")
    return array.astype(np.int32)
