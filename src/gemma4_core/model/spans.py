"""Which positions a call covers, where its K/V go, and which keys each query sees.

Four kinds of call read and write K/V differently, and all give the same numbers: ``FreshSpan`` has no cache (training,
uncached runs), ``ChunkSpan`` appends up to T positions to one slot, ``TokenSpan`` appends one, and ``RowsSpan`` appends
a few positions to each of several slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tinygrad import Tensor, UOp, dtypes

from gemma4_core.config import LayerConfig
from gemma4_core.ops.attention import KeyValues, Pattern
from gemma4_core.ops.slot_writes import write_positions


class Span(ABC):
    """Positions ``start … start + length - 1``; ``length`` is the padded, fixed T."""

    start: int | UOp
    length: int

    @abstractmethod
    def extend(self, layer: LayerConfig, k: Tensor, v: Tensor) -> KeyValues:
        """Take in this call's ``k, v [B, kv heads, T, D]`` and return all that its queries attend to."""

    def positions(self, device: str) -> Tensor:
        """Absolute positions int32 ``[T]``."""
        return Tensor.arange(self.length, dtype=dtypes.int32) + self.start


def visible(
    queries: Tensor, keys: Tensor, window: int | None, query_blocks: Tensor | None, key_blocks: Tensor | None
) -> Tensor:
    """Bool ``[T, S]`` from positions ``[T]`` and ``[S]``, or ``[B, 1, 1, T, S]`` with blocks: causal, inside the window
    where there is one; on sliding layers tokens of one media block (equal ids >= 0 in ``*_blocks [B, T or S]``) also
    see later ones inside the window. A negative key position is an empty slot."""
    rows, columns = queries.unsqueeze(1), keys.unsqueeze(0)
    seen = columns <= rows
    if window is not None:
        if query_blocks is not None and key_blocks is not None:
            query, key = query_blocks.unsqueeze(2), key_blocks.unsqueeze(1)  # [B, T, 1], [B, 1, S]
            same = ((query == key) & (query >= 0)).unsqueeze(1).unsqueeze(1)  # [B, 1, 1, T, S]
            seen = seen | same
        seen = seen & (columns > rows - window)
    return seen & (columns >= 0)


class FreshSpan(Span):
    """A run without a cache over positions 0 … T-1. ``blocks`` int32 ``[B, T]`` marks media blocks, -1 elsewhere;
    positions see only those of the same number in ``segments``, int32 ``[B, T]``, where rows hold several texts."""

    def __init__(
        self, length: int, device: str, blocks: Tensor | None = None, segments: Tensor | None = None
    ) -> None:
        self.start, self.length, self.device, self.blocks, self.segments = 0, length, device, blocks, segments

    def extend(self, layer: LayerConfig, k: Tensor, v: Tensor) -> KeyValues:
        positions = self.positions(self.device)
        mask = visible(positions, positions, layer.window, self.blocks, self.blocks)
        if self.segments is not None:
            same = self.segments.unsqueeze(2) == self.segments.unsqueeze(1)  # [B, T, T]
            mask = mask & same.unsqueeze(1).unsqueeze(1)  # [B, 1, 1, T, T]
        pattern = Pattern(layer.window, None if layer.window is None else self.blocks, self.segments)
        band = layer.window if self.blocks is None else None
        return KeyValues(k, v, mask, window=layer.window, band=band, pattern=pattern)


def ring_positions(slots: int, last: int | UOp, device: str) -> Tensor:
    """The position that each slot of a ring holds when ``last`` is the newest, int32 ``[slots]``; negative: empty."""
    return -((-Tensor.arange(slots, dtype=dtypes.int32) + last) % slots) + last


class ChunkSpan(Span):
    """Append ``valid`` of T positions to slots ``slot … slot + B - 1``, which hold as many; rows beyond ``valid`` are
    padding that is never seen.

    Rings are read before they are written: the queries attend to the old ring and the chunk side by side, so a chunk
    may be of any length, longer than the ring included.
    """

    def __init__(
        self,
        storage: Sequence[Tensor | None],
        slot: int | UOp,
        start: int | UOp,
        valid: int | UOp,
        length: int,
        device: str,
        blocks: Tensor | None = None,
    ) -> None:
        self.storage, self.slot, self.start, self.valid, self.length = storage, slot, start, valid, length
        self.device, self.blocks = device, blocks
        self.writes: list[Tensor] = []
        """Cache writes that no output depends on: realize them together with the outputs."""

    def extend(self, layer: LayerConfig, k: Tensor, v: Tensor) -> KeyValues:
        held = self.storage[layer.index]
        assert held is not None
        new = k.stack(v, dim=1)  # [B, 2, kv heads, T, D]
        mine = slice(self.slot, self.slot + int(new.shape[0]))
        if layer.window is None:
            return self._extend_full(held, mine, new)
        return self._extend_ring(held, mine, new, layer.window)

    def _extend_full(self, held: Tensor, mine: slice, new: Tensor) -> KeyValues:
        end = self.start + self.length
        written = Tensor(held.uop.after(held[mine, :, :, self.start : end].uop.store(new.uop)))
        both = written[mine, :, :, :end]
        keys = Tensor.arange(int(held.shape[3]), dtype=dtypes.int32)[:end]
        mask = visible(self.positions(self.device), keys, None, None, None)
        return KeyValues(both[:, 0], both[:, 1], mask, self.start)

    def _extend_ring(self, held: Tensor, mine: slice, new: Tensor, window: int) -> KeyValues:
        slots = int(held.shape[3])
        # materialised before the ring is overwritten
        joined = held[mine].cat(new, dim=3).contiguous()  # [B, 2, kv heads, slots + T, D]
        positions = self.positions(self.device)
        old = ring_positions(slots, self.start - 1, self.device)
        keys = old.cat(positions)
        blocks = None
        if self.blocks is not None:
            none = Tensor.full((self.blocks.shape[0], slots), -1, dtype=dtypes.int32, device=self.device)
            blocks = none.cat(self.blocks, dim=1)  # [B, slots + T]
        mask = visible(positions, keys, window, self.blocks, blocks)
        after = ring_positions(slots, self.start + self.valid - 1, self.device)
        fresh = after - self.start
        source = (fresh >= 0).where(fresh + slots, Tensor.arange(slots, dtype=dtypes.int32))
        written = Tensor(held.uop.after(held[mine].uop.store(joined[:, :, :, source].contiguous().uop)))
        self.writes.append(written)
        return KeyValues(joined[:, 0], joined[:, 1], mask, self.start, window)


class TokenSpan(Span):
    """Append one position to a slot: write first, then read in place."""

    def __init__(self, storage: Sequence[Tensor | None], slot: int | UOp, start: int | UOp, device: str) -> None:
        self.storage, self.slot, self.start, self.length, self.device = storage, slot, start, 1, device

    def extend(self, layer: LayerConfig, k: Tensor, v: Tensor) -> KeyValues:
        held = self.storage[layer.index]
        assert held is not None
        new = k.stack(v, dim=1)  # [1, 2, kv heads, 1, D]
        mine, slots = slice(self.slot, self.slot + 1), int(held.shape[3])
        at = self.start if layer.window is None else self.start % slots
        written = Tensor(held.uop.after(held[mine, :, :, at : at + 1].uop.store(new.uop)))
        if layer.window is None:
            both = written[mine, :, :, : self.start + 1]
            return KeyValues(both[:, 0], both[:, 1], None, self.start)
        keys = ring_positions(slots, self.start, self.device)
        mask = ((keys >= 0) & (keys > -layer.window + self.start)).unsqueeze(0)  # [1, slots]
        both = written[mine]
        return KeyValues(both[:, 0], both[:, 1], mask, self.start, layer.window)


class RowsSpan(Span):
    """Append ``valid [B]`` of T positions from ``start [B]`` on to slots ``slot [B]``, all int32 in memory: write
    first, then read each sequence's own slot.

    T is at most what rings have beside their window, so that what is written overwrites nothing that is seen. Keys of
    full layers are read up to position ``end``. Several sequences may not share a slot; of one without valid positions
    nothing is written.
    """

    def __init__(
        self, storage: Sequence[Tensor | None], slot: Tensor, start: Tensor, valid: Tensor, length: int, end: int | UOp,
        device: str,
    ) -> None:
        self.storage, self.slot, self.first, self.valid, self.end = storage, slot, start, valid, end
        self.start, self.length, self.device = 0, length, device
        self.rows = start.unsqueeze(1) + Tensor.arange(length, dtype=dtypes.int32).unsqueeze(0)
        """The queries' positions, ``[B, T]``."""

    def extend(self, layer: LayerConfig, k: Tensor, v: Tensor) -> KeyValues:
        held = self.storage[layer.index]
        assert held is not None
        new = k.stack(v, dim=1).contiguous()  # [B, 2, kv heads, T, D]
        written = write_positions(held, new, self.slot, self.first, self.valid)
        size = int(held.shape[3])
        both, queries = written[self.slot], self.rows.unsqueeze(2)  # [B, 2, kv heads, positions, D], [B, T, 1]
        places = Tensor.arange(size, dtype=dtypes.int32)
        if layer.window is None:
            both, keys = both[:, :, :, : self.end], places[: self.end].reshape(1, 1, -1)
            seen = keys <= queries
        else:
            newest = (self.first + self.valid - 1).reshape(-1, 1, 1)
            keys = -((newest - places.reshape(1, 1, -1)) % size) + newest  # [B, 1, positions]
            seen = (keys <= queries) & (keys > queries - layer.window) & (keys >= 0)
        mask = seen.unsqueeze(1).unsqueeze(1)  # [B, 1, 1, T, S]
        return KeyValues(both[:, 0], both[:, 1], mask, window=layer.window)
