"""How much memory this process used."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """Peak resident memory of this process in bytes, 0 where the system does not tell."""
    try:
        # on Linux ru_maxrss starts at the parent's peak, VmHWM does not
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes(device: str) -> int:
    """Peak memory of the device: resident memory on a CPU, tinygrad's peak allocation elsewhere."""
    if device.split(":")[0] in ("CPU", "PYTHON"):
        return peak_rss_bytes()
    from tinygrad.helpers import GlobalCounters

    return max(GlobalCounters.mem_used_per_device[device], 0)
