"""Rounding fp32 to bfloat16 up or down at random, as likely as the value is near: small updates add up on average."""

from __future__ import annotations

import math

from tinygrad import Tensor, dtypes

from gemma4_core.ops.sampling import mix

LOW, EXPONENT = 0xFFFF, 0x7F800000
"""Bits of an fp32 number that bfloat16 has no room for, and those of its exponent."""


def at_random(value: Tensor, step: Tensor, salt: int) -> Tensor:
    """bfloat16 of fp32 ``value``; another number is drawn for each element, each ``step [1]`` and each ``salt``, the
    same one every time. Infinities and NaN stay what they are."""
    index = Tensor.arange(math.prod(value.shape), dtype=dtypes.uint32).to(value.device).reshape(value.shape)
    x = index * 0x9E3779B9 + step.cast(dtypes.uint32) * 0x85EBCA6B + (salt * 0xC2B2AE35 & 0xFFFFFFFF)
    noise = mix(x) & LOW
    bits = value.bitcast(dtypes.uint32)
    finite = (bits & EXPONENT) != EXPONENT
    rounded = finite.where((bits + noise) & (0xFFFFFFFF - LOW), bits).bitcast(dtypes.float32)
    return rounded.cast(dtypes.bfloat16)
