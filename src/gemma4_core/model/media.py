"""Soft tokens of media: encoded by the towers, counted against the placeholders, put in their places."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Device, Tensor

from gemma4_core.contracts.arranged_media import ArrangingTower
from gemma4_core.errors import InputError
from gemma4_core.model.ids import check_rows, media_blocks
from gemma4_core.plugins.origin import nearest

if TYPE_CHECKING:
    from gemma4_core.contracts import ModalityTower, Tower
    from gemma4_core.model.model import GemmaModel


@dataclass(frozen=True)
class MediaTime:
    """Seconds that a tower took for an amount of media, such as 2 images or 9.8 seconds of sound."""

    seconds: float
    amount: float
    unit: str

    @property
    def seconds_each(self) -> float:
        """Seconds for one unit."""
        return self.seconds / self.amount if self.amount else 0.0


@dataclass(frozen=True)
class PlacedPrompt:
    """Token ids with media in their places: what prompts become for generation, for gradients and for training.

    Where ``soft_tokens`` is there the towers have run; where ``arranged`` is, they have yet to, in a captured graph.
    """

    ids: np.ndarray
    """int32 ``[B, T]``; the pad id where a soft token stands."""
    soft: np.ndarray | None = None
    """int32 ``[B, T]``: row of the soft tokens, -1 for text; None without media."""
    blocks: np.ndarray | None = None
    """int32 ``[B, T]``: bidirectional block of each position, -1 elsewhere; None where the model has none."""
    soft_tokens: Tensor | None = None
    """All soft tokens one after another, ``[N, H]``."""
    arranged: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    """What each tower's ``encode_arranged`` takes, by the tower's name."""
    soft_count: int = 0
    """N, padding included."""
    signature: Sequence[int] = ()
    """Row 0's ids with a content hash (negative) at soft positions; equal signatures mean equal K/V. -1 at soft
    positions of a run that is not captured, and so never goes into a cache."""
    times: Mapping[str, MediaTime] = field(default_factory=dict)
    """What each tower took, by its name; of a run that is captured."""

    def row(self, row: int) -> PlacedPrompt:
        """One row alone. Of other rows than the first the signature says nothing about media."""

        def one(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[row : row + 1]

        signature = self.signature if row == 0 else self.ids[row].tolist()
        ids = self.ids[row : row + 1]
        return replace(self, ids=ids, soft=one(self.soft), blocks=one(self.blocks), signature=signature)

    @property
    def soft_positions(self) -> np.ndarray:
        """Where each soft token went: int32 ``[N]``, flat positions of ``[B, T]``, -1 for padding."""
        found = np.full(self.soft_count, -1, np.int32)
        if self.soft is not None:
            where = np.flatnonzero(self.soft >= 0)
            found[self.soft.reshape(-1)[where]] = where
        return found


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
        near = nearest(name, [keyword for spec in model.tower_specs for keyword in spec.keywords])
        raise InputError(f"{name}: no loaded modality takes it{near}; loaded: {', '.join(model.towers) or 'text only'}")
    return used


def refuse_unserved(model: GemmaModel, ids: np.ndarray) -> None:
    """Raise InputError for placeholders of media whose tower the checkpoint has and no plugin serves."""
    config = model.config
    tokens = {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}
    served = {spec.soft_token_id(config) for spec in model.known_specs}
    for name, token in tokens.items() if model.unserved else ():
        if token not in served and (ids == token).any():
            raise InputError(f"the prompt holds {name} tokens ({token}), and no plugin for them is loaded; "
                             f"gemma4 plugins says why")


def put_soft(h: Tensor, rows: Tensor, here: Tensor) -> Tensor:
    """The stream ``h [B, T, H]`` with ``rows [B, T, H]`` where ``here [B, T]`` holds; soft tokens are not scaled."""
    return here.unsqueeze(-1).where(rows.cast(h.dtype), h)


class Placeholders:
    """The placeholders of a prompt, filled tower by tower."""

    def __init__(self, model: GemmaModel, ids: np.ndarray) -> None:
        self.model, self.ids = model, ids
        self.clean = ids.copy()
        self.soft = np.full(ids.shape, -1, np.int32)
        self.bidirectional = np.zeros(ids.shape, np.bool_)
        self.rows = 0
        """Rows of soft tokens so far."""

    def of(self, spec: ModalityTower) -> np.ndarray:
        """Where a tower's placeholders are, bool ``[B, T]``. Raises InputError where it is not loaded."""
        where = self.ids == spec.soft_token_id(self.model.config)
        if where.any() and spec.name not in self.model.towers:
            raise InputError(
                f"the prompt holds {spec.placeholder} tokens, but the modality {spec.name} is not loaded: "
                f"add it to --modality (modalities)"
            )
        return where

    def fill(self, spec: ModalityTower, where: np.ndarray, rows: np.ndarray, count: int) -> bool:
        """Give placeholders these rows of the ``count`` that the tower makes; whether there are any.

        Raises InputError where soft tokens and placeholders differ in number.
        """
        holders = int(where.sum())
        if len(rows) != holders:
            raise InputError(f"{spec.name}: the prompt holds {holders} {spec.placeholder} tokens, the media given take "
                             f"{len(rows)}")
        if not holders:
            return False
        self.soft[where] = self.rows + rows
        self.clean[where] = self.model.config.pad_token_id
        self.bidirectional |= spec.bidirectional & where
        self.rows += count
        return True

    @property
    def blocks(self) -> np.ndarray | None:
        """Bidirectional blocks, where the model has such."""
        return media_blocks(self.bidirectional) if self.model.bidirectional else None


def place(model: GemmaModel, ids: np.ndarray, media: Mapping[str, Any], *, capture: bool = False) -> PlacedPrompt:
    """Encode media and find their places. Media of a kind fill its placeholders in order, row by row.

    ``capture`` as for ``Tower.encode``; without it the signature knows nothing of the media. Raises InputError where
    soft tokens and placeholders differ in number, and where the prompt needs a tower that is not loaded.
    """
    used = used_towers(model, media)
    refuse_unserved(model, ids)
    placeholders = Placeholders(model, ids)
    signature: list[int] = ids[0].tolist()
    encoded: list[Tensor] = []
    times: dict[str, MediaTime] = {}
    for spec in model.known_specs:
        where, features = placeholders.of(spec), _features(spec, media)
        began = time.perf_counter()
        tokens, marks = _encode(model.towers[spec.name], features, capture) if spec in used else ([], [])
        if placeholders.fill(spec, where, np.arange(len(marks)), len(marks)):
            if capture:  # else the towers have yet to run
                Device[model.device].synchronize()
                amount, unit = spec.amount(features) if spec.amount is not None else (len(tokens), "medium")
                times[spec.name] = MediaTime(time.perf_counter() - began, amount, unit)
            for position, mark in zip(np.flatnonzero(where[0]), marks, strict=False):
                signature[position] = mark
            encoded += tokens
    check_rows(placeholders.clean, model.config.text_config)
    if not encoded:
        return PlacedPrompt(ids, signature=signature)
    together = encoded[0].cat(*encoded[1:], dim=0) if len(encoded) > 1 else encoded[0]
    return PlacedPrompt(
        placeholders.clean, placeholders.soft, placeholders.blocks, together, soft_count=int(together.shape[0]),
        signature=signature, times=times,
    )


def place_arranged(model: GemmaModel, ids: np.ndarray, media: Mapping[str, Any]) -> PlacedPrompt | None:
    """As ``place`` with the media arranged on the host and towers that have yet to run; None where one of their towers
    cannot arrange, or there are no media. Raises InputError as ``place`` does."""
    used = used_towers(model, media)
    if not used:
        check_rows(ids, model.config.text_config)
    if not used or not all(isinstance(model.towers[spec.name], ArrangingTower) for spec in used):
        return None
    placeholders = Placeholders(model, ids)
    arrays: dict[str, tuple[np.ndarray, ...]] = {}
    for spec in model.known_specs:
        where = placeholders.of(spec)
        tower = model.towers.get(spec.name)
        rows, count = np.zeros(0, np.int64), 0
        if spec in used and isinstance(tower, ArrangingTower):
            media_arrays = tower.arrange(_features(spec, media))
            if media_arrays.rows:
                rows, count = np.concatenate(media_arrays.rows), media_arrays.count
                arrays[spec.name] = media_arrays.arrays
        placeholders.fill(spec, where, rows, count)
    check_rows(placeholders.clean, model.config.text_config)
    if not arrays:
        return None
    return PlacedPrompt(
        placeholders.clean, placeholders.soft, placeholders.blocks, arranged=arrays, soft_count=placeholders.rows
    )


def encode_arranged(model: GemmaModel, arrays: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """The soft tokens ``[N, H]`` of a prompt from uploaded arrays of ``PlacedPrompt.arranged``; differentiable."""
    encoded = []
    for name, tensors in arrays.items():
        tower = model.towers[name]
        assert isinstance(tower, ArrangingTower)
        encoded.append(tower.encode_arranged(*tensors).contiguous())
    return encoded[0].cat(*encoded[1:], dim=0) if len(encoded) > 1 else encoded[0]


def _features(spec: ModalityTower, media: Mapping[str, Any]) -> dict[str, Any]:
    return {name: media[name] for name in spec.keywords if media.get(name) is not None}


def _encode(tower: Tower, features: Mapping[str, Any], capture: bool) -> tuple[list[Tensor], list[int]]:
    """Soft tokens of each medium, and for each soft token a negative number that stands for its content."""
    tokens = tower.encode(features, capture=capture)
    if not capture:
        return tokens, [-1] * sum(int(t.shape[0]) for t in tokens)
    tokens = [t.realize() for t in tokens]
    digests = [-1 - int.from_bytes(digest, "big") for digest in tower.digests(features)]
    return tokens, [d for d, t in zip(digests, tokens, strict=True) for _ in range(int(t.shape[0]))]
