"""How much memory processes use."""

from __future__ import annotations

import os
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


def process_memory_bytes(pid: int) -> int:
    """Resident memory of another process of this user in bytes, 0 where the system does not tell."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0
    import ctypes

    if sys.platform == "darwin":
        # struct rusage_info_v0 of sys/resource.h: a uuid of 16 bytes, then ten uint64, the seventh ri_resident_size
        usage = (ctypes.c_uint64 * 12)()
        failed = ctypes.CDLL(None).proc_pid_rusage(ctypes.c_int(pid), ctypes.c_int(0), usage)
        return 0 if failed else int(usage[8])
    return 0


def peak_memory_bytes(device: str) -> int:
    """Peak memory of the device: resident memory on a CPU, tinygrad's peak allocation elsewhere."""
    if device.split(":")[0] in ("CPU", "PYTHON"):
        return peak_rss_bytes()
    from tinygrad.helpers import GlobalCounters

    return max(GlobalCounters.mem_used_per_device[device], 0)
