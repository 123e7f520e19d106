"""Soft tokens of media: encoded by the towers, counted against the placeholders, put in their places."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor

from gemma4_core.errors import InputError
from gemma4_core.model.ids import media_blocks

if TYPE_CHECKING:
    from gemma4_core.descriptions import ModalityTower
    from gemma4_core.model.model import GemmaModel


@dataclass(frozen=True)
class Placed:
    """A prompt with its media in place."""

    ids: np.ndarray
    """int32 ``[B, T]``; the pad id where a soft token stands."""
    soft_tokens: Tensor | None
    """All soft tokens one after another, ``[N, H]``."""
    soft: np.ndarray | None
    """int32 ``[B, T]``: row of ``soft_tokens``, -1 for text."""
    blocks: np.ndarray | None
    """int32 ``[B, T]``: bidirectional block of each position, -1 elsewhere."""
    signature: list[int]
    """Row 0's ids with a content hash (negative) at soft positions; equal signatures mean equal K/V."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each tower took."""


def used_towers(model: GemmaModel, media: Mapping[str, Any]) -> list[ModalityTower]:
    """The towers whose keywords are among ``media``. Raises InputError for a keyword that no loaded tower takes."""
    given = {name for name, value in media.items() if value is not None}
    used = [spec for spec in model.tower_specs if given & set(spec.keywords)]
    for spec in used:
        if spec.keywords[0] not in given:
            extra = sorted(given & set(spec.keywords))[0]
            raise InputError(f"{extra} was given without {spec.keywords[0]}")
    unknown = given - {keyword for spec in used for keyword in spec.keywords}
    if unknown:
        name = sorted(unknown)[0]
        raise InputError(f"{name}: no loaded modality takes it; loaded: {', '.join(model.towers) or 'text only'}")
    return used


def put_soft(h: Tensor, rows: Tensor, here: Tensor) -> Tensor:
    """The stream ``h [B, T, H]`` with ``rows [B, T, H]`` where ``here [B, T]`` holds; soft tokens are not scaled."""
    return here.unsqueeze(-1).where(rows.cast(h.dtype), h)


def place(model: GemmaModel, ids: np.ndarray, media: Mapping[str, Any], *, capture: bool = False) -> Placed:
    """Encode media and find their places. Media of a kind fill its placeholders in order, row by row.

    ``capture`` as for ``Tower.encode``. Raises InputError where soft tokens and placeholders differ in number, and
    where the prompt needs a tower that is not loaded.
    """
    used = used_towers(model, media)
    clean = ids.copy()
    soft = np.full(ids.shape, -1, np.int32)
    signature = ids.astype(np.int64)
    bidirectional = np.zeros(ids.shape, np.bool_)
    encoded: list[Tensor] = []
    seconds: dict[str, float] = {}
    total = 0
    for spec in model.known_specs:
        where = ids == spec.soft_token_id(model.config)
        holders = int(where.sum())
        if holders and spec.name not in model.towers:
            raise InputError(
                f"the prompt holds {spec.placeholder} tokens, but the modality {spec.name} is not loaded: "
                f"add it to --modality (modalities)"
            )
        began = time.perf_counter()
        tokens, marks = _encode(model, spec, media, capture) if spec in used else ([], [])
        if len(marks) != holders:
            raise InputError(
                f"{spec.name}: the prompt holds {holders} {spec.placeholder} tokens, the media given take {len(marks)}"
            )
        if not holders:
            continue
        seconds[spec.name] = time.perf_counter() - began
        soft[where] = np.arange(total, total + holders)
        signature[where] = marks
        clean[where] = model.config.pad_token_id
        bidirectional |= spec.bidirectional & where
        encoded += tokens
        total += holders
    if not encoded:
        return Placed(ids, None, None, None, signature[0].tolist())
    together = encoded[0].cat(*encoded[1:], dim=0) if len(encoded) > 1 else encoded[0]
    blocks = media_blocks(bidirectional) if model.bidirectional else None
    return Placed(clean, together, soft, blocks, signature[0].tolist(), seconds)


def _encode(
    model: GemmaModel, spec: ModalityTower, media: Mapping[str, Any], capture: bool
) -> tuple[list[Tensor], list[int]]:
    """Soft tokens of each medium, and for each soft token a negative number that stands for its content."""
    tower = model.towers[spec.name]
    features = {name: media[name] for name in spec.keywords if media.get(name) is not None}
    tokens = tower.encode(features, capture=capture)
    if capture:
        tokens = [t.realize() for t in tokens]
    digests = [-1 - int.from_bytes(digest[:7], "big") for digest in tower.digests(features)]
    return tokens, [d for d, t in zip(digests, tokens, strict=True) for _ in range(int(t.shape[0]))]
