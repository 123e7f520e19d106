"""Time of something that runs on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

SAMPLES, BUDGET_SECONDS = 10, 2.0
"""As many samples as come within the budget, at least one."""


def median_seconds(run: Callable[[], Any], device: str) -> float:
    """Median seconds of a call with everything that it queues, after a first one that compiles and captures."""
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
