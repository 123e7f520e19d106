"""Dropout whose choice is a hash of numbers: nothing is kept, and what is computed twice drops the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from tinygrad import Tensor, dtypes

from gemma4_core.ops.graphs import upload

_ON: ContextVar[bool] = ContextVar("dropout", default=False)
EVERY = 1 << 32


@dataclass(frozen=True, eq=False)
class Dropout:
    """Drops numbers with a probability, while ``dropping`` says so; the others are scaled by ``1 / (1 - p)``.

    Whether a number is dropped depends on the step, on who drops, and on the number's place, and on nothing else.
    """

    p: float
    step: Tensor
    """uint32 ``[1]``, which all of a model share: see ``counter`` and ``begin``."""
    place: Tensor
    """uint32 ``[1]``, of its own."""

    @staticmethod
    def counter(device: str) -> Tensor:
        """uint32 ``[1]``, in memory: the ``step`` that all dropouts of a model share."""
        return number(0, device)

    @staticmethod
    def begin(held: Tensor, seed: int, step: int, batch: int) -> None:
        """Write into a ``counter`` what the dropouts of one batch of a step are drawn from."""
        found = zlib.crc32(np.array([seed, step, batch], np.uint64).tobytes())
        held.assign(number(found, str(held.device))).realize()

    @classmethod
    def of(cls, p: float, step: Tensor, name: str) -> Dropout:
        """The one of a name, such as that of the matrix whose input it is."""
        return cls(p, step, number(zlib.crc32(name.encode()), str(step.device)))

    def __call__(self, x: Tensor) -> Tensor:
        """``x``, in memory, with numbers dropped; itself where none are to be."""
        return self.scaled(x).contiguous() if self.drops else x

    @property
    def drops(self) -> bool:
        """Whether anything is dropped now."""
        return self.p > 0 and _ON.get()

    def scaled(self, x: Tensor) -> Tensor:
        """``x`` times 0 or ``1 / (1 - p)``: also what its gradient goes through."""
        count = int(x.numel())
        # [n] places of numbers -> x's shape
        places = Tensor.arange(count, dtype=dtypes.uint32).reshape(x.shape)
        salt = mixed(self.step + mixed(self.place)).reshape(*[1] * x.ndim)
        kept = mixed(places ^ salt) >= min(round(self.p * EVERY), EVERY - 1)
        return kept.where(x.cast(dtypes.float32) * (1 / (1 - self.p)), 0.0).cast(x.dtype)


def mixed(x: Tensor) -> Tensor:
    """A hash of uint32 numbers (the constants are those of C. Wellons's ``lowbias32``, 2018)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


def number(value: int, device: str) -> Tensor:
    """uint32 ``[1]``, in memory."""
    return upload(np.array([value], np.uint32), device)


@contextmanager
def dropping(on: bool = True) -> Iterator[None]:
    """Whether what is computed in this block drops numbers."""
    token = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(token)
