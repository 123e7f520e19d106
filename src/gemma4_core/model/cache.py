"""``GemmaCache``: the keys and values of one call's rows, all of the same length; what ``forward_ids``, ``generate``
and a chat carry from call to call. Its buffers are a ``SlotStore`` that grows in steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from gemma4_core.errors import InputError
from gemma4_core.model.slots import Held, SlotOwner, SlotStore

CAPACITY_STEPS = (512, 2048, 8192, 32768, 131072, 262144)


def capacity_for(positions: int, context: int) -> int:
    """The smallest step that holds this many positions, at most the context."""
    return min(next((step for step in CAPACITY_STEPS if step >= positions), context), context)


class GemmaCache:
    """Keys and values of the tokens seen so far. Made empty; buffers come with the first call of a model and grow with
    use."""

    def __init__(self, max_context: int | None = None) -> None:
        if max_context is not None and max_context < 1:
            raise InputError(f"max_context {max_context}: must be at least 1")
        self.max_context = max_context
        self.storage: SlotStore | None = None
        self._empty = Held()
        self._release: weakref.finalize | None = None

    @classmethod
    def empty(cls, num_layers: int | None = None, max_context: int | None = None) -> GemmaCache:
        """An empty cache. The number of layers is accepted for compatibility; the model's config decides."""
        return cls(max_context)

    def __repr__(self) -> str:
        capacity = self.storage.capacity if self.storage else 0
        return f"GemmaCache(length={self.length}, capacity={capacity}, max_context={self.max_context})"

    @property
    def held(self) -> Held:
        """What its first row holds."""
        return self.storage.held[0] if self.storage is not None else self._empty

    @property
    def length(self) -> int:
        """Positions held, in every row."""
        return self.held.length

    @property
    def tokens(self) -> list[int]:
        """Row 0 at those positions: ids, and content marks where soft tokens stand."""
        return self.held.tokens

    @property
    def revision(self) -> int:
        """The model's ``weights_revision`` that keys and values of the first position were made with."""
        return self.held.revision

    @property
    def nbytes(self) -> int:
        """Bytes of device memory held."""
        return self.storage.nbytes if self.storage else 0

    def context(self, model: SlotOwner) -> int:
        """Positions that it may hold for this model."""
        return min(self.max_context or model.max_context, model.max_context)

    def reserve(self, model: SlotOwner, batch: int, positions: int) -> SlotStore:
        """Storage for this many positions in all, grown with its contents where too small.

        Raises InputError where the rows differ from those held or the context is exceeded.
        """
        context = self.context(model)
        if positions > context:
            raise InputError(
                f"{positions} tokens exceed the context of {context} by {positions - context}: "
                "shorten the prompt, ask for fewer new tokens, or raise --context (max_context)"
            )
        if self.storage is not None and self.storage.count != batch and self.length:
            raise InputError(f"the cache holds {self.storage.count} row(s), the call has {batch}")
        fits = self.storage is not None and self.storage.count == batch and self.storage.capacity >= positions
        if not fits:
            self._adopt(model, model.pool.take(model, batch, capacity_for(positions, context)))
        assert self.storage is not None
        if not self.length:
            for held in self.storage.held:
                held.revision = model.weights_revision
        return self.storage.current(model)

    def _adopt(self, model: SlotOwner, new: SlotStore) -> None:
        if self.storage is not None and self.length:
            new.grown_from(self.storage)
        if self._release is not None:
            self._release()
        self.storage = new
        self._release = weakref.finalize(self, model.pool.give, new)

    def truncate(self, length: int) -> bool:
        """Take back all but the first ``length`` positions of every row; see ``SlotStore.truncate``."""
        if self.storage is None:
            return False
        return all([self.storage.truncate(slot, length) for slot in range(self.storage.count)])

    def reset(self) -> None:
        """Forget all tokens; buffers stay."""
        for held in self.storage.held if self.storage is not None else ():
            held.length, held.written, held.tokens = 0, 0, []

    def note(self, ids: Sequence[int]) -> None:
        """Record that every row holds as many positions more, row 0 these ids."""
        assert self.storage is not None
        for row, held in enumerate(self.storage.held):
            if row == 0:
                held.note(ids)
            else:
                held.grow(len(ids))
