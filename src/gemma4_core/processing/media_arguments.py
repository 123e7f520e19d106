"""What ``prepare_inputs`` is given: media alone or in lists, ids, and how media are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemma4_core.processing.media_cache import digest
from gemma4_core.processing.sources import MediaSource


def as_list(value: Any) -> list[Any]:
    """One medium or several as a list. A pair of an array and a sampling rate is one medium."""
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) and isinstance(value[1], int | float):
        return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def is_ids(value: Any) -> bool:
    """Whether a prompt is token ids."""
    if hasattr(value, "dtype") and getattr(value, "ndim", 0) == 1:
        return True
    return isinstance(value, list | tuple) and bool(value) and all(
        isinstance(item, int | np.integer) and not isinstance(item, bool) for item in value
    )


def fingerprint(source: Any) -> tuple[Any, ...] | None:
    """A key for the content of a medium; None where there is no cheap one."""
    if isinstance(source, MediaSource):
        return source.fingerprint()
    if isinstance(source, np.ndarray) and source.dtype != object:
        return ("array", digest(source))
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray):
        return ("pair", digest(source[0]), repr(source[1]))
    return None


def weight(item: Any) -> int:
    """Bytes that a loaded medium holds: what it says itself, else its arrays."""
    if isinstance(getattr(item, "nbytes", None), int):
        return int(item.nbytes)
    values = vars(item).values() if hasattr(item, "__dict__") else [item]
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
