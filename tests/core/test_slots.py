"""``SlotStore``: claiming, taking back, copying and releasing, with rings that have wrapped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tinygrad import dtypes

from gemma4_core import InputError
from gemma4_core.config import parse_config, preset_dict
from gemma4_core.engine.prefix import PrefixStore
from gemma4_core.model.slots import SlotStore, slot_bytes
from gemma4_core.ops.graphs import upload

pytestmark = pytest.mark.usefixtures("plain_loops")
CHUNK, CAPACITY = 8, 200


def owner(device: str) -> Any:
    return SimpleNamespace(
        config=parse_config(preset_dict("tiny-e2b", False)), device=device, dtype=dtypes.float32, max_context=512,
        chunk=CHUNK, longest_chunk=CHUNK, pool=None, weights_revision=1, graphs_revision=1,
    )


@pytest.fixture
def slots(cpu: str) -> SlotStore:
    return SlotStore(owner(cpu), 3, CAPACITY)


def fill(slots: SlotStore, slot: int, length: int) -> None:
    """Keys and values that tell slot and position, each where a step would have put it."""
    for index, tensor in enumerate(slots.layers):
        if tensor is None:
            continue
        values = tensor.numpy()
        for position in range(length):
            values[slot, :, :, position % values.shape[3]] = 1000 * slot + position
        slots.layers[index] = tensor.assign(upload(values, str(tensor.device))).realize()
    held = slots.held[slot]
    held.length, held.tokens = 0, []
    held.note([5 + i % 7 for i in range(length)])


def windows(slots: SlotStore, slot: int) -> list[list[float]]:
    """What each own layer holds of the newest positions of a window, by position."""
    length, found = slots.held[slot].length, []
    for tensor in (tensor for tensor in slots.layers if tensor is not None):
        places = int(tensor.shape[3])
        newest = range(max(length - (places - CHUNK), 0), length)
        found.append([float(tensor.numpy()[slot, 1, 0, position % places, 0]) for position in newest])
    return found


def test_claims_are_for_free_slots_and_the_emptiest_comes_first(slots: SlotStore) -> None:
    slots.held[0].note([1, 2, 3])
    assert [slots.claim(10), slots.claim(CAPACITY), slots.claim(1)] == [1, 2, 0]
    with pytest.raises(InputError, match="all 3 slots"):
        slots.claim(1)
    slots.release(2)
    assert slots.claim(5) == 2
    with pytest.raises(InputError, match="201 positions"):
        slots.claim(CAPACITY + 1)
    assert slots.nbytes == 3 * slot_bytes(owner("CPU"), CAPACITY)


def test_a_sequence_keeps_its_list_of_ids_and_another_gets_a_new_one(slots: SlotStore) -> None:
    slot = slots.claim(10)
    mine = slots.tokens(slot)
    slots.held[slot].note([3, 4])
    assert slots.tokens(slot) is mine and mine == [3, 4]
    slots.release(slot)
    assert slots.tokens(slot) is mine  # it may serve as a beginning
    slots.truncate(slot, 0)
    assert slots.tokens(slot) is not mine and slots.tokens(slot) == []


@pytest.mark.parametrize("length", [5, 150])
def test_truncation_goes_back_as_far_as_the_rings_hold_a_window(slots: SlotStore, length: int) -> None:
    wrapped = length > min(slots.rings)
    fill(slots, 0, length)
    assert slots.truncate(0, length - 3) and slots.held[0].length == length - 3 == len(slots.tokens(0))
    assert slots.truncate(0, length - 3)  # nothing is taken back
    fill(slots, 0, length)
    assert slots.truncate(0, 1) == (not wrapped or length - 1 <= CHUNK)
    assert slots.held[0].length == (0 if wrapped else 1)
    assert not slots.truncate(0, 0)


@pytest.mark.parametrize(("length", "kept"), [(6, 6), (6, 2), (150, 150), (150, 150 - CHUNK)])
def test_a_copy_holds_the_beginning_and_leaves_the_others_alone(slots: SlotStore, length: int, kept: int) -> None:
    fill(slots, 2, 9)
    fill(slots, 0, length)
    slots.held[0].revision, slots.held[0].key = 7, ("adapter", "salt")
    before, other = windows(slots, 0), windows(slots, 2)
    slots.copy(0, 1, kept)
    assert slots.held[1].length == kept and slots.tokens(1) == slots.tokens(0)[:kept]
    assert (slots.held[1].revision, slots.held[1].key) == (7, ("adapter", "salt"))
    assert slots.tokens(1) is not slots.tokens(0)
    assert windows(slots, 0) == before and windows(slots, 2) == other
    for found in windows(slots, 1):
        assert found == [float(position) for position in range(kept - len(found), kept)]
    graphs = dict(slots.graphs)
    slots.copy(2, 0, 3)
    assert slots.graphs == graphs and windows(slots, 0)[0] == [2000.0, 2001.0, 2002.0]


def test_graphs_of_other_weights_are_dropped(slots: SlotStore) -> None:
    model = owner("CPU")
    slots.graphs["x"] = 1
    assert slots.current(model).graphs == {"x": 1}
    model.graphs_revision = 2
    assert slots.current(model).graphs == {}


def sequence(ids: list[int], key: tuple[object, ...] = ()) -> Any:
    return SimpleNamespace(prompt=SimpleNamespace(signature=ids, blocks=None), key=key)


def test_snapshots_take_the_place_of_the_one_that_was_used_longest_ago(cpu: str) -> None:
    slots = SlotStore(owner(cpu), 4, CAPACITY)
    store = PrefixStore(slots, 1, 3)
    assert [slots.held[slot].claimed for slot in range(4)] == [False, True, True, True]
    for first in (10, 20, 30):
        slots.truncate(0, 0)
        slots.held[0].note(list(range(first, first + 20)))
        slots.held[0].revision = 1
        store.keep(0, 18)
        store.keep(0, 18)  # it is there already
    assert store.stats.snapshots == 3
    store.used(1)
    slots.truncate(0, 0)
    slots.held[0].note(list(range(40, 60)))
    slots.held[0].revision = 1
    store.keep(0, 18)
    assert sorted(slots.tokens(slot)[0] for slot in store.kept) == [10, 30, 40]
    assert store.best(sequence([*range(30, 48), 1]), 1) == (3, 18)
    assert store.best(sequence([*range(30, 48), 1]), 2)[1] == 0  # other weights
    assert store.best(sequence([*range(30, 48), 1], ("salt",)), 1)[1] == 0
    assert store.best(sequence([*range(30, 40)]), 1)[1] == 9  # one position is left to run


def test_a_wrapped_slot_serves_only_near_its_end(cpu: str) -> None:
    slots = SlotStore(owner(cpu), 2, CAPACITY)
    store = PrefixStore(slots, 1, 1)
    slots.held[0].note([5 + i % 7 for i in range(150)])
    slots.held[0].revision = 1
    ids = [5 + i % 7 for i in range(150)]
    assert store.best(sequence([*ids[: 150 - CHUNK], 99, 99]), 1) == (0, 150 - CHUNK)
    assert store.best(sequence([*ids[: 149 - CHUNK], 99, 99]), 1)[1] == 0


def test_rings_are_as_long_as_a_window_and_a_chunk(slots: SlotStore) -> None:
    windows_of = [layer.window for layer in owner("CPU").config.text_config.layers]
    for tensor, window in zip(slots.layers, windows_of, strict=True):
        assert tensor is None or tensor.shape[:2] == (3, 2)
        assert tensor is None or tensor.shape[3] == (CAPACITY if window is None else window) + CHUNK
    assert np.unique(slots.rings).tolist() == sorted({window + CHUNK for window in windows_of if window is not None})
