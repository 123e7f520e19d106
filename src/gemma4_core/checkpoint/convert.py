"""Bits of stored numbers to bits of the run-time dtype, with numpy, a piece at a time.

numpy has no bfloat16: its bits travel as uint16.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

STORED: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
"""numpy type of the bits by the file format's name, for the dtypes that weights can have."""
RUN_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The file format's name of a dtype by the config's name."""
QUIET_NAN = np.uint16(0x7FC0)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """fp32 to bfloat16 bits, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounding = bits >> 16
    rounding &= 1
    rounding += 0x7FFF
    rounding += bits
    rounding >>= 16
    rounded = rounding.astype(np.uint16)
    unknown = np.isnan(values)
    if unknown.any():
        rounded[unknown] = QUIET_NAN
    return rounded


def float32_values(bits: np.ndarray, stored: str) -> np.ndarray:
    """Stored bits as fp32 values of the same shape."""
    if stored == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return bits.astype(np.float32)


def convert(bits: np.ndarray, stored: str, wanted: str) -> np.ndarray:
    """Bits of one dtype as bits of another, both by the file format's names; the same array if they are equal."""
    if stored == wanted:
        return bits
    if stored == "BF16" and wanted == "F32":
        return float32_values(bits, stored)
    if bits.itemsize == 2:
        return table(stored, wanted)[bits.view(np.uint16)]
    return narrow(bits, wanted)


def narrow(values: np.ndarray, wanted: str) -> np.ndarray:
    """fp32 values as bits of a dtype; values too large for fp16 become infinite."""
    if wanted == "BF16":
        return bfloat16_bits(values)
    with np.errstate(over="ignore"):
        return values.astype(STORED[wanted])


@lru_cache
def table(stored: str, wanted: str) -> np.ndarray:
    """The value of each of the 65536 numbers of a 16-bit dtype in another dtype: a look-up is several times faster
    than numpy's conversion of fp16."""
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(STORED[stored])
    return narrow(float32_values(every, stored), wanted)
