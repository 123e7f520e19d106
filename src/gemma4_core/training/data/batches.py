"""Which examples make which step, and batches of few different lengths made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.model.ids import padded_length
from gemma4_core.training.batch import IGNORED, MEDIA_FIELDS, GemmaTrainingBatch
from gemma4_core.training.data.examples import Example, Examples

if TYPE_CHECKING:
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

OPEN = 64
"""Rows among which packing looks for room."""
WINDOW = 32
"""Batches among whose examples those of like length are brought together."""

Row = tuple[int, ...]
"""Examples in one row by index: one, or with packing several."""
Rows = tuple[Row, ...]
"""The rows of one batch."""


@dataclass(frozen=True, eq=False)
class Batches:
    """The steps of each epoch: a function of the seed and the epoch's number alone, so that a run can go on anywhere.

    ``batch_size`` rows make a batch, ``accumulate`` batches a step; the last step of an epoch may have fewer. With
    ``pack`` a row holds several examples, which do not see each other.
    """

    examples: Examples
    processor: GemmaMultimodalProcessor
    batch_size: int = 1
    accumulate: int = 1
    pack: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        media = next((item for item in self.items if item.sources), None)
        if self.pack and media is not None:
            raise InputError(f"{media.where}: has media, and only text can be packed; leave --pack out")

    @property
    def items(self) -> Sequence[Example]:
        """The examples."""
        return self.examples.items

    @cached_property
    def limit(self) -> int:
        """No row is padded beyond this."""
        assert self.processor.context.config is not None
        return self.processor.context.config.text_config.max_position_embeddings

    def epoch(self, number: int) -> list[tuple[Rows, ...]]:
        """The batches of every step of an epoch, in order."""
        return _epoch(self, number)

    def order(self) -> list[Rows]:
        """All examples once, shortest rows first, for validation."""
        rows = self._rows(list(range(len(self.items))))
        return grouped(sorted(rows, key=self._key), self.batch_size)

    def steps(self, epochs: int) -> int:
        """Steps of so many epochs; only packing makes epochs of different lengths."""
        return sum(map(len, map(self.epoch, range(epochs)))) if self.pack else epochs * len(self.epoch(0))

    def _rows(self, order: Sequence[int]) -> list[Row]:
        """Examples as rows; with packing each goes into the first of the last rows that has room for it."""
        if not self.pack:
            return [(index,) for index in order]
        size = padded_length(self.examples.tokens, self.examples.limit)
        size = min(size, self.examples.limit)
        rows: list[list[int]] = []
        room: list[int] = []
        for index in order:
            need = len(self.items[index].ids)
            late = range(max(0, len(rows) - OPEN), len(rows))
            place = next((i for i in late if room[i] >= need), len(rows))
            if place == len(rows):
                rows.append([])
                room.append(size)
            rows[place].append(index)
            room[place] -= need
        return [tuple(row) for row in rows]

    def _length(self, row: Row) -> int:
        return sum(len(self.items[index].ids) for index in row)

    def _key(self, row: Row) -> tuple[bool, int]:
        """Rows of one key go together: those with media apart from text, each by length."""
        return bool(self.items[row[0]].sources), padded_length(self._length(row), self.limit)

    def make_length(self, rows: Rows) -> int:
        """What the rows of a batch are padded to."""
        return padded_length(max(self._length(row) for row in rows), self.limit)

    def make(self, rows: Rows) -> GemmaTrainingBatch:
        """The batch of some rows. Text batches are filled up with rows that teach nothing, to keep their shape.

        Raises InputError for media that can no longer be read.
        """
        config = self.processor.context.config
        assert config is not None
        media = {
            spec.name: [medium for row in rows for i in row for medium in self.items[i].sources.get(spec.name, ())]
            for spec in self.processor.specs
        }
        features = self.processor.features({name: found for name, found in media.items() if found})
        length = self.make_length(rows)
        count = len(rows) if features else self.batch_size
        ids = np.full((count, length), config.pad_token_id, np.int32)
        labels = np.full((count, length), IGNORED, np.int32)
        segments = np.full((count, length), -1, np.int32)
        for number, row in enumerate(rows):
            at = 0
            for segment, index in enumerate(row):
                item = self.items[index]
                span = slice(at, at := at + len(item.ids))
                ids[number, span], labels[number, span], segments[number, span] = item.ids, item.labels, segment
        own = {name: features.pop(name) for name in list(features) if name in MEDIA_FIELDS}
        return GemmaTrainingBatch(ids, labels, **own, features=features, segments=segments if self.pack else None)


@lru_cache(maxsize=4)
def _epoch(batches: Batches, number: int) -> list[tuple[Rows, ...]]:
    random = np.random.default_rng([batches.seed, 2, number])
    rows = batches._rows(random.permutation(len(batches.items)).tolist())
    window = WINDOW * batches.batch_size * batches.accumulate
    found: list[Rows] = []
    for first in range(0, len(rows), window):
        found += grouped(sorted(rows[first : first + window], key=batches._key), batches.batch_size)
    shuffled: list[Any] = [found[index] for index in random.permutation(len(found))]
    return grouped(shuffled, batches.accumulate)


def grouped(items: Sequence[Any], size: int) -> list[Any]:
    """Runs of ``size`` items, the last perhaps shorter."""
    return [tuple(items[first : first + size]) for first in range(0, len(items), size)]
