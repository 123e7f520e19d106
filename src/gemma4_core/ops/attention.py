"""What attention reads: keys and values with what is needed to mask them."""

from __future__ import annotations

from dataclasses import dataclass

from tinygrad import Tensor, UOp


@dataclass(frozen=True)
class Pattern:
    """What a mask is made of where queries and keys are positions 0 … T-1, for kernels that mask scores themselves.

    A query sees keys of its own position and before, ``window`` of them; in ``blocks`` (media) also later ones inside
    the window that have its own number, if that is not negative; and with ``segments`` only keys of its own number.
    """

    window: int | None = None
    blocks: Tensor | None = None
    """int32 ``[B, T]``; they count where there is a window."""
    segments: Tensor | None = None
    """int32 ``[B, T]``."""


@dataclass(frozen=True)
class KeyValues:
    """Keys and values that one call of a layer attends to; passed between layers that share them.

    ``k`` and ``v`` are ``[B, kv heads, S, D]``. ``mask`` is bool ``[T, S]`` or ``[B, 1, 1, T, S]``, True where a query
    may look; None where every key is visible to every query. ``start`` is the absolute position of the first query, and
    ``window`` that of the ring that older keys come from (None for full layers). Where ``band`` is given, the first
    query is at the first key, and every query sees at most so many keys, itself the last. ``pattern`` says what the
    mask is made of, where it is made of that.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    start: int | UOp = 0
    window: int | None = None
    band: int | None = None
    pattern: Pattern | None = None

    def last_row(self, row: int | UOp) -> KeyValues:
        """The same keys as one query at ``row`` of the call sees them."""
        mask = None if self.mask is None else self.mask[..., row : row + 1, :]
        return KeyValues(self.k, self.v, mask, self.start + row, self.window)
