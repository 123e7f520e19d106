"""Bits of stored numbers to bits of the run-time dtype, with numpy, a piece at a time.

numpy has no bfloat16: its bits travel as uint16.
"""

from __future__ import annotations

import numpy as np

STORED: dict[str, type[np.generic]] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
"""numpy type of the bits by the file format's name, for dtypes that weights come in."""
RUN_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The file format's name by the config's."""


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """fp32 to bfloat16 bits, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def float32_values(bits: np.ndarray, stored: str) -> np.ndarray:
    """Stored bits as fp32 values of the same shape."""
    if stored == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32)


def convert(bits: np.ndarray, stored: str, wanted: str) -> np.ndarray:
    """Bits of one dtype as bits of another, both by the file format's names; the same array where they are one."""
    if stored == wanted:
        return bits
    values = float32_values(bits, stored)
    if wanted == "BF16":
        return bfloat16_bits(values)
    with np.errstate(over="ignore"):
        return values.astype(STORED[wanted])
