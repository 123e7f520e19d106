"""Soft tokens by content, and captured graphs: what is hashed, and what is copied out."""

from __future__ import annotations

import numpy as np
import pytest
from tinygrad import Tensor, dtypes
from tinygrad.device import Allocator

from gemma4_core.processing import tower_graphs
from gemma4_core.processing.media_cache import PIECE, digest


@pytest.mark.parametrize("size", [10, PIECE, PIECE + 1, 3 * PIECE])
@pytest.mark.parametrize("place", [0, -1])
def test_every_byte_counts(size: int, place: int) -> None:
    one = np.zeros(size, np.uint8)
    other = one.copy()
    other[place] = 1
    assert digest(one) == digest(one.copy()) != digest(other)
    assert digest(one) != digest(one.reshape(1, -1)) != digest(one.view(np.int8).reshape(1, -1))


def test_pieces_do_not_stand_for_what_they_are_of() -> None:
    large = bytes(3 * PIECE)
    assert len({digest(large), digest(bytes(2 * PIECE)), digest(digest(bytes(PIECE)) * 3), digest(bytes(60))}) == 4


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("rows", [2, 4])
def test_first_rows_are_a_copy(cpu: str, monkeypatch: pytest.MonkeyPatch, offsets: bool, rows: int) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    tensor = Tensor(values, device=cpu).cast(dtypes.bfloat16).contiguous().realize()
    if not offsets:  # as on OpenCL
        monkeypatch.setattr(tower_graphs, "offsets_work", lambda device: False)
        monkeypatch.setattr(type(tensor.uop.buffer.allocator), "_offset", Allocator._offset)
    found = tower_graphs.first_rows(tensor, rows)
    tower_graphs.write(tensor, np.zeros((4, 3), np.uint16))
    assert np.array_equal(found.float().numpy(), values[:rows])


@pytest.mark.parametrize("rows", [None, 1])
def test_a_graph_per_shape(cpu: str, rows: int | None) -> None:
    called: list[int] = []

    def doubled(x: Tensor) -> Tensor:
        called.append(int(x.shape[0]))
        return x * 2

    graphs = tower_graphs.Captured(doubled, dict, cpu)
    results = [graphs([np.full((n, 2), value, np.float32)], rows) for n, value in ((3, 1), (3, 2), (4, 5), (3, 7))]
    assert called == [3, 4]
    for found, n, value in zip(results, (3, 3, 4, 3), (1, 2, 5, 7), strict=True):
        assert np.array_equal(found.numpy(), np.full((rows or n, 2), 2 * value, np.float32))


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_written(cpu: str, order: str) -> None:
    tensor = Tensor.zeros(2, 3, device=cpu).contiguous().realize()
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32, order=order)  # type: ignore[call-overload]
    values.flags.writeable = False
    tower_graphs.write(tensor, values)
    assert np.array_equal(tensor.numpy(), values)
