"""``SlotStore``: device memory for the keys and values of several sequences, one slot for each.

A sliding layer keeps a ring of one window plus the longest chunk: entry j holds the newest position p with
p mod ring = j. The slack of one chunk lets a call write its positions before its first query reads its window, and lets
the newest positions be taken back without losing keys that still lie in a window. A full layer keeps every position
that a slot may have. Layers that share another layer's keys and values keep nothing. Which keys a query sees is decided
in ``spans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tinygrad import Tensor, UOp, dtypes
from tinygrad.dtype import DType

from gemma4_core.config import GemmaConfig
from gemma4_core.errors import InputError
from gemma4_core.ops.graphs import CapturedGraph


class SlotOwner(Protocol):
    """What slots need to know of a model."""

    config: GemmaConfig
    device: str
    dtype: DType
    max_context: int
    chunk: int
    pool: SlotPool
    weights_revision: int
    graphs_revision: int

    @property
    def longest_chunk(self) -> int:
        """Positions of the longest chunk."""


@dataclass
class Held:
    """What a slot holds."""

    length: int = 0
    """Positions."""
    written: int = 0
    """The position behind the newest that was ever written since the slot was empty: taken back, or never counted, it
    stays in a ring until it is overwritten."""
    tokens: list[int] = field(default_factory=list)
    """Ids at those positions, for finding a common prefix, and content marks where soft tokens stand."""
    revision: int = 0
    """The model's ``weights_revision`` that keys and values were made with."""
    key: tuple[object, ...] = ()
    """What else keys and values depend on: adapter and salt of the sequence."""
    claimed: bool = False

    def same_beginning(self, other: Held, length: int) -> bool:
        """Whether it holds just the first ``length`` positions of another slot."""
        same = (self.length, self.revision, self.key) == (length, other.revision, other.key)
        return same and self.tokens == other.tokens[:length]

    def note(self, ids: Sequence[int]) -> None:
        """Record that these ids follow."""
        self.tokens.extend(ids)
        self.grow(len(ids))

    def grow(self, count: int) -> None:
        """Count positions on."""
        self.length += count
        self.written = max(self.written, self.length)


def layer_shapes(model: SlotOwner, capacity: int) -> list[tuple[int, int, int, int] | None]:
    """``[2, kv heads, positions, head_dim]`` of a slot for each layer, None for layers that share another's."""
    shapes: list[tuple[int, int, int, int] | None] = []
    for layer in model.config.text_config.layers:
        if layer.is_shared:
            shapes.append(None)
            continue
        # a device may write a padded chunk, beyond the last valid position of a full layer
        positions = capacity + model.chunk if layer.window is None else layer.window + model.longest_chunk
        shapes.append((2, layer.num_key_value_heads, positions, layer.head_dim))
    return shapes


def slot_bytes(model: SlotOwner, capacity: int) -> int:
    """Bytes of one slot that holds this many positions."""
    shapes = [shape for shape in layer_shapes(model, capacity) if shape is not None]
    return model.dtype.itemsize * sum(a * b * c * d for a, b, c, d in shapes)


class SlotStore:
    """Slots of equal size.

    Args:
        model: whose layers decide the shapes.
        count: slots, S.
        capacity: positions that a slot has room for.
    """

    def __init__(self, model: SlotOwner, count: int, capacity: int) -> None:
        self.count, self.capacity = count, capacity
        self.layers: list[Tensor | None] = [
            None if shape is None
            else Tensor.zeros(count, *shape, dtype=model.dtype, device=model.device).contiguous().realize()
            for shape in layer_shapes(model, capacity)
        ]
        """``[S, 2, kv heads, positions, head_dim]`` per layer, keys then values; None for layers that share another's.
        What belongs to a slot lies in one block, so that a kernel for one sequence finds a slot by its address alone,
        and copying one is one copy."""
        self.held = [Held() for _ in range(count)]
        self.graphs: dict[object, object] = {}
        """What was captured or built against these buffers, by a key of its maker's."""
        self.revision = model.graphs_revision
        self.slack = model.longest_chunk
        """Positions that rings have beside their window."""
        self.rings = [
            int(tensor.shape[3]) for tensor, layer in zip(self.layers, model.config.text_config.layers, strict=True)
            if tensor is not None and layer.window is not None
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held."""
        return sum(t.nbytes() for t in self.layers if t is not None)

    def current(self, model: SlotOwner) -> SlotStore:
        """Itself, without graphs of weights that the model has no longer."""
        if self.revision != model.graphs_revision:
            self.graphs.clear()
            self.revision = model.graphs_revision
        return self

    # ------------------------------------------------------------------------------------------- claim and release

    def claim(self, positions: int) -> int:
        """A free slot for a sequence of at most so many positions; what it holds stays until it is truncated.

        Raises InputError where a slot is smaller than that, or none is free.
        """
        if positions > self.capacity:
            raise InputError(f"{positions} positions do not fit into a slot of {self.capacity}")
        free = [slot for slot, held in enumerate(self.held) if not held.claimed]
        if not free:
            raise InputError(f"all {self.count} slots are taken")
        slot = min(free, key=lambda slot: self.held[slot].length)
        self.held[slot].claimed = True
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back. What it holds may still serve as a prefix until it is claimed again."""
        self.held[slot].claimed = False

    # ------------------------------------------------------------------------------------------- contents

    def tokens(self, slot: int) -> list[int]:
        """The ids that a slot holds, content marks where soft tokens stand: the same list as long as one sequence has
        the slot."""
        return self.held[slot].tokens

    def reaches(self, slot: int, length: int) -> bool:
        """Whether a slot can go on from its first ``length`` positions: rings that have wrapped hold a window before
        one of their last positions alone."""
        held = self.held[slot]
        wrapped = any(held.written > ring for ring in self.rings)
        return 0 < length <= held.length and not (wrapped and held.written - length > self.slack)

    def truncate(self, slot: int, length: int) -> bool:
        """Take back all but the first ``length`` positions of a slot. False where a ring no longer holds their window:
        then the slot is empty."""
        held = self.held[slot]
        if not self.reaches(slot, length):
            held.length, held.written, held.tokens = 0, 0, []
            return False
        held.length, held.tokens = length, held.tokens[:length]
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source``, which must reach them."""
        if source != target:
            if "copy" not in self.graphs:
                self.graphs["copy"] = CapturedGraph(self._copying())
            last = max(self.count - 1, 1)
            numbers = (UOp.variable("source", 0, last).bind(source), UOp.variable("target", 0, last).bind(target))
            # the last position, not their number: a CUDA graph is set up with variables of 0
            self.graphs["copy"](*numbers, UOp.variable("last", 0, self.capacity - 1).bind(length - 1))  # type: ignore[operator]
        held, new = self.held[source], self.held[target]
        new.length, new.tokens = length, held.tokens[:length]
        new.written, new.revision, new.key = held.written, held.revision, held.key

    def _copying(self):  # type: ignore[no-untyped-def]
        """A function of two slots' numbers and the last position to copy; rings are copied whole."""
        rings = set(self.rings)

        def copy(source: UOp, target: UOp, last: UOp) -> Tensor:
            written = []
            for tensor in (t for t in self.layers if t is not None):
                stop = int(tensor.shape[3]) if int(tensor.shape[3]) in rings else last + 1
                there, here = (tensor[n : n + 1, :, :, :stop] for n in (source, target))
                written.append(Tensor(tensor.uop.after(here.uop.store(there.contiguous().uop))))
            done = Tensor.ones(1, dtype=dtypes.int32, device=written[0].device).contiguous()
            return done.realize(*written)

        return copy

    def grown_from(self, old: SlotStore) -> None:
        """Take over all that an older store of as many slots holds."""
        for source, target in zip(old.layers, self.layers, strict=True):
            if source is not None and target is not None:
                kept = min(source.shape[3], target.shape[3])
                tail = target[:, :, :, kept:]
                target.assign(source[:, :, :, :kept].cat(tail, dim=3).contiguous()).realize()
        for old_held, held in zip(old.held, self.held, strict=True):
            held.length, held.tokens, held.revision = old_held.length, list(old_held.tokens), old_held.revision
            held.written = old_held.written


class SlotPool:
    """Stores that no cache uses any more, by slots and capacity, with what was captured against them."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, int], list[SlotStore]] = {}

    def take(self, model: SlotOwner, count: int, capacity: int) -> SlotStore:
        """A store that is free, emptied, or a new one."""
        waiting = self.free.get((count, capacity))
        if not waiting:
            return SlotStore(model, count, capacity)
        store = waiting.pop()
        store.held = [Held() for _ in range(count)]
        return store

    def give(self, store: SlotStore) -> None:
        """Keep a store for the next one who asks for its size."""
        self.free.setdefault((store.count, store.capacity), []).append(store)

    def clear(self) -> None:
        """Forget all free stores and what was captured against them."""
        self.free.clear()
