"""The processor's kernels at any slot do what they do at slot 0."""

from __future__ import annotations

import numpy as np
import pytest
from scheduling import model, ordinary

from gemma4_core.contracts.rows import Rows
from gemma4_core.engine.rows import greedy_rows
from gemma4_core.model.slots import SlotStore

pytestmark = pytest.mark.usefixtures("plain_loops")


def logits(slots: SlotStore, slot: int, name: str, pieces: tuple[int, ...]) -> np.ndarray:
    """Logits after each piece of a prompt, some of one position, some longer."""
    engine, found, at = model(name).engine, [], 0
    ids = np.random.default_rng(1).choice(ordinary(name), sum(pieces)).astype(np.int32)
    for count in pieces:
        numbers = np.arange(count, dtype=np.int32)
        rows = Rows(ids[at : at + count], np.full(count, slot, np.int32), at + numbers, numbers[-1:])
        result = engine.run(slots, rows, greedy_rows(1), logits=True)
        assert result.logits is not None
        found.append(result.logits.numpy()[:1].copy())
        at += count
    return np.concatenate(found)


@pytest.mark.parametrize("name", ["e2b-mm", "odd-moe", "dense-mm"])
def test_kernels_at_any_slot_equal_those_at_slot_0(name: str) -> None:
    ours, pieces = model(name), (7, 1, 1, 256, 30, 1, 40, 1)
    slots = SlotStore(ours, 4, 400)
    assert ours.engine.device_steps(slots) == ("decode", "prefill")
    expected = logits(slots, 0, name, pieces)
    held = [None if tensor is None else tensor.numpy()[0].copy() for tensor in slots.layers]
    for slot in (3, 1, 2):
        assert np.array_equal(logits(slots, slot, name, pieces), expected)
    for tensor, first in zip(slots.layers, held, strict=True):
        if tensor is not None and first is not None:  # each wrote into its own slot, and none into another's
            assert all(np.array_equal(tensor.numpy()[slot], first) for slot in range(4))


def test_slots_take_turns() -> None:
    name, pieces = "e2b-mm", (7, 1, 30, 1)
    ours = model(name)
    slots = SlotStore(ours, 3, 60)
    expected = logits(slots, 0, name, pieces)
    for slot in (0, 1, 2):
        slots.truncate(slot, 0)
    ids = np.random.default_rng(1).choice(ordinary(name), sum(pieces)).astype(np.int32)
    at, found = 0, {slot: [] for slot in range(3)}  # type: ignore[var-annotated]
    for count in pieces:
        numbers = np.arange(count, dtype=np.int32)
        for slot in (2, 0, 1):
            rows = Rows(ids[at : at + count], np.full(count, slot, np.int32), at + numbers, numbers[-1:])
            result = ours.engine.run(slots, rows, greedy_rows(1), logits=True)
            assert result.logits is not None
            found[slot].append(result.logits.numpy()[:1].copy())
        at += count
    assert all(np.array_equal(np.concatenate(rows), expected) for rows in found.values())


def test_one_call_for_several_slots_gives_each_row_its_own_result() -> None:
    name = "dense-mm"
    ours = model(name)
    slots = SlotStore(ours, 3, 60)
    slot, position = np.array([2, 0, 0, 1], np.int32), np.array([0, 0, 1, 0], np.int32)
    rows = Rows(np.array([5, 6, 7, 8], np.int32), slot, position, np.arange(4, dtype=np.int32))
    together = ours.engine.run(slots, rows, greedy_rows(4), logits=True)
    single = []
    for run in ([0], [1, 2], [3]):
        part = Rows(rows.ids[run], slot[run], position[run], np.arange(len(run), dtype=np.int32))
        single += ours.engine.run(slots, part, greedy_rows(len(run)), logits=True).read()
    assert [token for token, _ in together.read()] == [token for token, _ in single]
    assert together.logits is not None and together.logits.shape == (4, 300)
    assert together.ids.tolist() == [token for token, _ in single]
