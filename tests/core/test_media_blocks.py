"""Runs of positions around media blocks, and which of them a device's own chunks take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemma4_core.engine.engine import Engine
from gemma4_core.model.ids import block_ends, split
from gemma4_core.ops import portable
from gemma4_core.ops.steps import Chunk


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
def test_a_device_takes_blocks_up_to_its_own_length(
    longest: int, count: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []

    class Model:
        pass

    model: Any = Model()
    step: Any = lambda *given: taken.append(True)  # noqa: E731
    model.operations = replace(portable(), prefill=lambda view, storage: step, prefill_both_ways=longest)
    engine: Any = object.__new__(Engine)
    engine.model = engine.view = model
    monkeypatch.setattr(Engine, "append_portable", lambda *given: taken.append(False))
    cache: Any = Model()
    cache.length, cache.reserve, cache.note = 0, lambda *given: None, lambda signature: None
    for blocks in (np.zeros((1, count), np.int32), np.full((1, count), -1, np.int32)):
        engine.append(cache, Chunk(np.ones((1, count), np.int32), np.zeros((1, count), np.int32), blocks))
    assert taken == [own, True]  # without blocks a chunk of any length is its own
