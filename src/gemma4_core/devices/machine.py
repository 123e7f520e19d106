"""What this machine offers: its processor and cores, memory, and a private cache folder."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import functools
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gemma4_core.errors import DeviceError

CGROUPS = Path("/sys/fs/cgroup")
THREADS = "GEMMA4_THREADS"
ROOM = 1 << 20
"""Bytes that must fit into a cache folder: a disk with less than that is full."""


# ------------------------------------------------------------------------------------------------ cores


def cpu_count() -> int:
    """Cores that this process may use: its affinity, less where a control group grants fewer whole cores of time.

    A thread more than that would hold up the others whenever the group's time is used up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders():
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, _, period = (folder / "cpu.max").read_text().partition(" ")
            if quota != "max":
                cores = min(cores, int(quota) // int(period))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((CGROUPS / "cpu/cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            cores = min(cores, quota_us // int((CGROUPS / "cpu/cpu.cfs_period_us").read_text()))
    return max(cores, 1)


def thread_count() -> int:
    """Threads for kernels: ``GEMMA4_THREADS``, else tinygrad's ``NUM_CPU_THREADS``, else the cores of this process.

    Raises DeviceError for a value that is not a whole number from 1.
    """
    for name in (THREADS, "NUM_CPU_THREADS"):
        value = os.environ.get(name, "")
        if value:
            if not value.isascii() or not value.isdigit() or not 1 <= int(value[:9]) <= 4096:
                raise DeviceError(f"{name}={value[:100]!r}: must be a whole number from 1 to 4096")
            return int(value)
    return cpu_count()


@functools.cache
def processor() -> str:
    """Vendor, model and feature flags of the first processor, as the system names them, on one line: code compiled for
    it may not run on another."""
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    return " ".join(line.split(":", 1)[1].strip() for line in lines if line.startswith(wanted) and ":" in line)


# ------------------------------------------------------------------------------------------------ memory


def total_memory_bytes() -> int | None:
    """Physical memory in bytes, None where the system does not tell."""
    if sys.platform == "darwin":
        return _sysctl_u64("hw.memsize")
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def free_memory_bytes() -> int | None:
    """Memory in bytes that this process can still take without swapping, None where the system does not tell.

    On Linux MemAvailable, less where a control group allows less; page cache counts as free. On macOS, which hides
    the figure, three quarters of the physical memory: what Metal recommends as the largest working set.
    """
    if sys.platform == "darwin":
        total = total_memory_bytes()
        return None if total is None else total * 3 // 4
    free = _meminfo("MemAvailable")
    limits = [limit for folder in _cgroup_folders() if (limit := _cgroup_free(folder)) is not None]
    return min([*limits, *([free] if free is not None else [])], default=None)


def _meminfo(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None


def _cgroup_free(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(int(limit) - used + int(statistics.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None


def _cgroup_folders() -> Iterator[Path]:
    """This process's control group (version 2) and those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            folder = CGROUPS / line[4:].strip("/")
            while folder != CGROUPS and CGROUPS in folder.parents:
                yield folder
                folder = folder.parent
    yield CGROUPS


def _sysctl_u64(name: str) -> int | None:
    value, size = ctypes.c_uint64(), ctypes.c_size_t(8)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return None
    return None if failed else int(value.value)


# ------------------------------------------------------------------------------------------------ cache folder


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/gemma4`` (``~/.cache/gemma4``, on macOS ``~/Library/Caches/gemma4``), made if absent.

    Nobody else can write to it. Where it cannot be made or written, or its disk is full, a new folder below the
    temporary folder, which goes when this process ends; a line on stderr says so. Raises DeviceError where neither
    can be had.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    standard = "Library/Caches" if sys.platform == "darwin" else ".cache"
    base = home if os.path.isabs(home) else os.path.join(os.path.expanduser("~"), standard)
    return _cache_folder(os.path.join(base, "gemma4"))


@functools.cache
def _cache_folder(wanted: str) -> Path:
    from gemma4_core.formatting import shown_path

    try:
        return _private(Path(wanted))
    except OSError as error:
        reason = error.strerror or str(error)
    where = shown_path(wanted)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="gemma4-"))
        _private(folder)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise DeviceError(f"no folder for compiled kernels: {where}: {reason}; temporary folder: "
                          f"{error.strerror or 'cannot be written'}; set XDG_CACHE_HOME to a folder that can be "
                          f"written") from error  # fmt: skip
    atexit.register(_remove, folder, os.getpid())
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"Warning: {where}: {reason}; compiled kernels are kept in {folder} until this run ends; set "
                  f"XDG_CACHE_HOME to a folder that can be written", file=sys.stderr, flush=True)  # fmt: skip
    return folder


def _private(folder: Path) -> Path:
    """Make the folder if needed. Raises OSError where it is not ours, others can write to it, or we cannot."""
    if not os.path.isabs(folder):
        raise PermissionError(errno.EACCES, "there is no home folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()  # a link of the user's may lead to another disk
    if not is_ours(folder.lstat()):
        raise PermissionError(errno.EACCES, "another user owns it or can write to it")
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        if file.write(bytes(ROOM)) < ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not a process that was forked off it
        shutil.rmtree(folder, ignore_errors=True)


def is_ours(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and nobody else can write to it."""
    ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
