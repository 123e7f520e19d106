"""What attention reads: keys and values with what is needed to mask them."""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, UOp


@dataclass(frozen=True)
class KeyValues:
    """Keys and values that one call of a layer attends to; passed between layers that share them.

    ``k`` and ``v`` are ``[B, kv heads, S, D]``. ``mask`` is bool ``[T, S]`` or ``[B, 1, 1, T, S]``, True where a query
    may look; None where every key is visible to every query. ``start`` is the absolute position of the first query, and
    ``window`` that of the ring that older keys come from (None for full layers). Where ``band`` is given, the first
    query is at the first key, and every query sees at most so many keys, itself the last.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    start: int | UOp = 0
    window: int | None = None
    band: int | None = None

    def last_row(self, row: int | UOp) -> KeyValues:
        """The same keys as one query at ``row`` of the call sees them."""
        mask = None if self.mask is None else self.mask[..., row : row + 1, :]
        return KeyValues(self.k, self.v, mask, self.start + row, self.window)
