"""A small memory of what was made of media, bounded in entries and bytes, oldest use first out."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np

Value = TypeVar("Value")


PIECE, HASHERS = 1 << 20, 4
"""Bytes of an array that are hashed at once, and threads that do it: one takes five milliseconds for a large image."""


def _hash(data: Any) -> Any:
    return hashlib.sha256(data)


def digest(*parts: Any) -> bytes:
    """A content hash of bytes and numpy arrays; shapes and dtypes count."""
    state = _hash(b"")
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            part = np.ascontiguousarray(part).view(np.uint8).reshape(-1) if part.size else b""
        if len(part) <= PIECE:
            state.update(part)
            continue
        state.update(len(part).to_bytes(8, "little"))
        with ThreadPoolExecutor(HASHERS) as threads:
            pieces = [part[at : at + PIECE] for at in range(0, len(part), PIECE)]
            for piece in threads.map(lambda piece: _hash(piece).digest(), pieces):
                state.update(piece)
    return state.digest()


class BoundedCache(Generic[Value]):
    """Values by key; ``size`` tells what a value weighs in bytes."""

    def __init__(self, entries: int, limit_bytes: int, size: Callable[[Value], int]) -> None:
        self.entries, self.limit_bytes, self.size = entries, limit_bytes, size
        self._held: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable | None, make: Callable[[], Value]) -> Value:
        """The value under ``key``, made where it is not held; a key of None is never held."""
        if key is None:
            return make()
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        value = make()
        self._held[key] = value
        self._bytes += self.size(value)
        while len(self._held) > self.entries or (self._bytes > self.limit_bytes and len(self._held) > 1):
            self._bytes -= self.size(self._held.popitem(last=False)[1])
        return value

    def clear(self) -> None:
        """Drop everything."""
        self._held.clear()
        self._bytes = 0
