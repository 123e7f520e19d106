"""Timing calls on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

SAMPLES, BUDGET_SECONDS = 10, 2.0
"""The most samples of a case, and the seconds after which no further one is taken."""


def median_seconds(run: Callable[[], Any], device: str) -> float:
    """Median seconds of a call, queued work included, after a first call that compiles and captures."""
    from tinygrad import Device

    run()
    Device[device].synchronize()
    seconds: list[float] = []
    while len(seconds) < SAMPLES and sum(seconds) < BUDGET_SECONDS:
        began = time.perf_counter()
        run()
        Device[device].synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
