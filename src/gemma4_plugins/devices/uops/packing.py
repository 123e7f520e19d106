"""Numbers as they are stored in memory, 32 bits at a time.

tinygrad 0.14 joins neighbouring loads of 32-bit words to loads of 128 bits, but not those of narrower types
(``codegen/late/coalesce.py``). So kernels read weights, norms and the cache as words and take numbers out of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinygrad import UOp, dtypes
from tinygrad.dtype import DType


@dataclass(frozen=True)
class Packing:
    """How numbers are packed into words of 32 bits."""

    name: str
    word: DType
    count: int
    """Numbers per word."""
    unpack: Callable[[UOp], list[UOp]]
    """A word's numbers, fp32, in order of their addresses."""
    pack: Callable[[list[UOp]], UOp] | None = None
    """Packs fp32 numbers into a word, rounded to nearest even; None if kernels write no such words."""
    rounded: Callable[[UOp], UOp] = lambda value: value
    """An fp32 number as it would be stored."""

    def number(self, words: UOp, index: UOp) -> UOp:
        """One number, fp32, of an array of words."""
        word = words[index // self.count]
        return self.unpack(shifted(word, index % self.count, 32 // self.count))[0] if self.count > 1 else word


def shifted(word: UOp, which: UOp, bits: int) -> UOp:
    """The word with its number ``which`` in the lowest bits."""
    return word >> (which * bits).cast(dtypes.uint)


def bf16_pair(word: UOp) -> list[UOp]:
    """Two bf16 numbers, the first in the low half."""
    return [(word << 16).bitcast(dtypes.float), (word & 0xFFFF0000).bitcast(dtypes.float)]


def bf16_bits(value: UOp) -> UOp:
    """fp32 to bf16, in the high half of a word; finite weights and activations produce no NaN."""
    bits = value.bitcast(dtypes.uint)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000


def bf16_word(values: list[UOp]) -> UOp:
    """Two fp32 numbers as bf16 in a word."""
    low, high = map(bf16_bits, values)
    return (low >> 16) | high


def signed_bytes(word: UOp) -> list[UOp]:
    """Four int8 numbers, the first in the lowest byte."""
    bits = word.bitcast(dtypes.int)
    return [((bits << (24 - 8 * i)) >> 24).cast(dtypes.float) for i in range(4)]


BF16 = Packing(
    "bf16", dtypes.uint, 2, bf16_pair, bf16_word, lambda value: bf16_bits(value).bitcast(dtypes.float)
)
FP32 = Packing("fp32", dtypes.float, 1, lambda word: [word], lambda values: values[0])
INT8 = Packing("int8", dtypes.uint, 4, signed_bytes)
PACKINGS = {dtypes.bfloat16: BF16, dtypes.float32: FP32, dtypes.int8: INT8}


def vector_of(words: int) -> int:
    """Words per load from rows of this many words: 4, or fewer where rows would not be aligned."""
    return next(size for size in (4, 2, 1) if words % size == 0)
