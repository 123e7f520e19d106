"""Runs of positions around media blocks, and which of them a device's own chunks take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemma4_core.contracts.rows import MediaRows, Rows
from gemma4_core.engine.engine import Engine
from gemma4_core.model.ids import block_ends, split
from gemma4_core.ops import portable


@pytest.mark.parametrize(
    ("blocks", "ends"),
    [([-1, -1, -1], [0, 1, 2]), ([0, 0, -1, 1, 1, 1], [1, 1, 2, 5, 5, 5]), ([0, 1, 1], [0, 2, 2]), ([], [])],
)
def test_block_ends(blocks: list[int], ends: list[int]) -> None:
    assert block_ends(np.array([blocks], np.int32)).tolist() == ends


def test_a_block_is_never_cut() -> None:
    blocks = np.array([[-1, 0, 0, 0, -1, 1, 1, -1]], np.int32)
    assert split(8, 3, blocks) == [(0, 1), (1, 4), (4, 7), (7, 8)]
    assert split(8, 2, blocks) == [(0, 1), (1, 4), (4, 5), (5, 7), (7, 8)]


@pytest.mark.parametrize(("longest", "count", "own"), [(0, 2, False), (4, 4, True), (4, 5, False)])
def test_a_device_takes_blocks_up_to_its_own_length(longest: int, count: int, own: bool) -> None:
    taken: list[bool] = []

    class Model:
        pass

    class Longest:
        def serves(self, rows: Rows, sampling: object) -> bool:
            both_ways = rows.media is not None and rows.media.sees_both_ways
            return not both_ways or rows.count <= longest

        def __call__(self, rows: Rows, sampling: object, **options: bool) -> None:
            taken.append(True)

    model: Any = Model()
    model.operations = replace(portable(), step=lambda view, slots: Longest())
    engine: Any = object.__new__(Engine)
    engine.model, engine.view, engine.portable = model, model, Model()
    engine.portable.run = lambda *given: taken.append(False)
    slots: Any = Model()
    slots.graphs = {}
    positions = np.arange(count, dtype=np.int32)
    soft: Any = None
    for blocks in (np.zeros(count, np.int32), np.full(count, -1, np.int32)):
        media = MediaRows(soft, np.zeros(count, np.int32), blocks)
        engine.run(slots, Rows(positions, np.zeros(count, np.int32), positions, positions[:0], media), None)
    assert taken == [own, True]  # without blocks a chunk of any length is its own
