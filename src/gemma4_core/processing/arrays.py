"""Features from outside as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemma4_core.errors import InputError


def as_array(value: Any, name: str) -> np.ndarray:
    """A list, numpy array or Tensor as a numpy array. Raises InputError naming it."""
    try:
        if hasattr(value, "numpy"):
            # numpy has no bfloat16
            narrow = str(getattr(value, "dtype", "")).endswith(("bfloat16", "half", "float16"))
            value = (value.float() if narrow else value).numpy()
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name}: is not a rectangular array of numbers: {str(error)[:100]}") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: holds {array.dtype}, expected numbers")
    return array
