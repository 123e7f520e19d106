"""Writes into slots whose numbers lie in memory: counts of tokens, positions of keys and values."""

from __future__ import annotations

import numpy as np
import pytest
from tinygrad import Tensor, dtypes

from gemma4_core.ops.slot_writes import count_tokens, write_positions

pytestmark = pytest.mark.usefixtures("cpu")


def numbers(values: list[int]) -> Tensor:
    return Tensor(values, dtype=dtypes.int32, device="CPU").realize()


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 4])
def test_tokens_are_counted_where_they_are_valid(rows: int, slots: int) -> None:
    rng = np.random.default_rng(rows)
    held = rng.integers(0, 9, (slots, 7))
    for valid in ([0] * rows, [1] * rows, [0, 1, 1][:rows]):
        slot, token = rng.integers(0, slots, rows).tolist(), rng.integers(0, 7, rows).tolist()
        counts = Tensor(held, dtype=dtypes.int32, device="CPU").contiguous().realize()
        count_tokens(counts, numbers(slot), numbers(token), numbers(valid)).realize()
        expected = held.copy()
        np.add.at(expected, (slot, token), valid)
        assert counts.numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("length", [1, 4])
def test_positions_are_written_where_they_are_valid(length: int) -> None:
    rng = np.random.default_rng(length)
    held = rng.standard_normal((3, 2, 1, 5, 4)).astype(np.float32)
    new = rng.standard_normal((2, 2, 1, length, 4)).astype(np.float32)
    slot, start, valid = [2, 0], [4, 1], [length, 0]
    storage = Tensor(held, device="CPU").contiguous().realize()
    write_positions(storage, Tensor(new, device="CPU"), numbers(slot), numbers(start), numbers(valid)).realize()
    expected = held.copy()
    for t in range(length):
        expected[2, :, :, (4 + t) % 5] = new[0, :, :, t]
    assert np.array_equal(storage.numpy(), expected)
