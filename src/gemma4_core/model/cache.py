"""The K/V cache: storage only. Which keys a query sees is decided in ``spans``; layers pass K/V on as values.

Sliding layers keep a ring of one window plus the longest prefill chunk: slot j holds the newest position p with
p mod ring = j. The slack of one chunk lets the newest positions be taken back (a shorter common prefix) without losing
keys that still lie in a window. Full layers keep a buffer that grows in steps. Layers that share another layer's K/V
keep nothing. The number of tokens held is apart from where they are written.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tinygrad import Tensor
from tinygrad.dtype import DType

from gemma4_core.config import GemmaConfig
from gemma4_core.errors import InputError

CAPACITY_STEPS = (512, 2048, 8192, 32768, 131072, 262144)


def capacity_for(positions: int, context: int) -> int:
    """The smallest step that holds this many positions, at most the context."""
    return min(next((step for step in CAPACITY_STEPS if step >= positions), context), context)


class CacheOwner(Protocol):
    """What a cache needs to know of a model."""

    config: GemmaConfig
    device: str
    dtype: DType
    max_context: int
    chunk: int
    pool: StoragePool
    weights_revision: int
    graphs_revision: int

    @property
    def longest_chunk(self) -> int:
        """Positions of the longest chunk."""


@dataclass(eq=False)
class Storage:
    """Device buffers for one cache; graphs are captured against them, so they are kept and handed on."""

    batch: int
    capacity: int
    layers: list[Tensor | None]
    """``[2, B, kv heads, slots, head_dim]`` per layer: K then V; None for shared layers."""
    graphs: dict[object, object] = field(default_factory=dict)
    """Graphs that were captured against these buffers, by what they do."""
    revision: int = 0
    """The model's ``graphs_revision`` that they were captured in."""

    def current(self, model: CacheOwner) -> Storage:
        """Itself, without graphs of weights that the model has no longer."""
        if self.revision != model.graphs_revision:
            self.graphs.clear()
            self.revision = model.graphs_revision
        return self


def allocate(model: CacheOwner, batch: int, capacity: int) -> Storage:
    """Zeroed buffers for ``capacity`` positions of ``batch`` rows."""
    layers: list[Tensor | None] = []
    for layer in model.config.text_config.layers:
        if layer.is_shared:
            layers.append(None)
            continue
        # a padded chunk may write beyond the last valid position of a full layer
        slots = capacity + model.chunk if layer.window is None else layer.window + model.longest_chunk
        shape = (2, batch, layer.num_key_value_heads, slots, layer.head_dim)
        layers.append(Tensor.zeros(*shape, dtype=model.dtype, device=model.device).contiguous().realize())
    return Storage(batch, capacity, layers, revision=model.graphs_revision)


class StoragePool:
    """Buffers that no cache uses any more, by batch and capacity, with the graphs captured against them."""

    def __init__(self) -> None:
        self.free: dict[tuple[int, int], list[Storage]] = {}

    def take(self, model: CacheOwner, batch: int, capacity: int) -> Storage:
        waiting = self.free.get((batch, capacity))
        return waiting.pop() if waiting else allocate(model, batch, capacity)

    def give(self, storage: Storage) -> None:
        self.free.setdefault((storage.batch, storage.capacity), []).append(storage)

    def clear(self) -> None:
        """Forget all free buffers and what was captured against them."""
        self.free.clear()


class GemmaCache:
    """K/V of the tokens seen so far. Made empty; buffers come with the first call of a model and grow with use."""

    def __init__(self, max_context: int | None = None) -> None:
        if max_context is not None and max_context < 1:
            raise InputError(f"max_context {max_context}: must be at least 1")
        self.max_context = max_context
        self.length = 0
        """Positions held."""
        self.tokens: list[int] = []
        """Row 0 at those positions, for finding a common prefix: ids, and content marks where soft tokens stand."""
        self.revision = 0
        """The model's ``weights_revision`` that K and V of the first position were made with."""
        self.storage: Storage | None = None
        self._release: weakref.finalize | None = None

    @classmethod
    def empty(cls, num_layers: int | None = None, max_context: int | None = None) -> GemmaCache:
        """An empty cache. The number of layers is accepted for compatibility; the model's config decides."""
        return cls(max_context)

    def __repr__(self) -> str:
        capacity = self.storage.capacity if self.storage else 0
        return f"GemmaCache(length={self.length}, capacity={capacity}, max_context={self.max_context})"

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held."""
        return sum(t.nbytes() for t in self.storage.layers if t is not None) if self.storage else 0

    def context(self, model: CacheOwner) -> int:
        """Positions that it may hold for this model."""
        return min(self.max_context or model.max_context, model.max_context)

    def reserve(self, model: CacheOwner, batch: int, positions: int) -> Storage:
        """Storage for this many positions in all, grown with its contents where too small.

        Raises InputError where the rows differ from those held or the context is exceeded.
        """
        context = self.context(model)
        if positions > context:
            raise InputError(
                f"{positions} tokens exceed the context of {context} by {positions - context}: "
                "shorten the prompt, ask for fewer new tokens, or raise --context (max_context)"
            )
        if self.storage is not None and self.storage.batch != batch and self.length:
            raise InputError(f"the cache holds {self.storage.batch} row(s), the call has {batch}")
        fits = self.storage is not None and self.storage.batch == batch and self.storage.capacity >= positions
        if not fits:
            self._adopt(model, model.pool.take(model, batch, capacity_for(positions, context)))
        if not self.length:
            self.revision = model.weights_revision
        assert self.storage is not None
        return self.storage.current(model)

    def _adopt(self, model: CacheOwner, new: Storage) -> None:
        old, release = self.storage, self._release
        if old is not None and self.length:
            for source, target in zip(old.layers, new.layers, strict=True):
                if source is not None and target is not None:
                    slots = min(source.shape[3], target.shape[3])
                    tail = target[:, :, :, slots:]
                    target.assign(source[:, :, :, :slots].cat(tail, dim=3).contiguous()).realize()
        if release is not None:
            release()
        self.storage = new
        self._release = weakref.finalize(self, model.pool.give, new)

    def truncate(self, length: int, slack: int) -> bool:
        """Take back all but the first ``length`` positions. False where a ring no longer holds their window: then
        the cache is emptied. ``slack`` is how far a ring may be wound back once it has wrapped."""
        if self.length - length > slack and any(
            t is not None and self.length > t.shape[3] for t in (self.storage.layers if self.storage else [])
        ):
            length = 0
        self.length, self.tokens = length, self.tokens[:length]
        return length > 0

    def reset(self) -> None:
        """Forget all tokens; buffers stay."""
        self.length, self.tokens = 0, []

    def note(self, ids: Sequence[int]) -> None:
        """Record that these ids (of row 0) are now held."""
        self.tokens.extend(ids)
        self.length += len(ids)
