"""The tile registers of Intel's AMX, which Linux gives to a process that asks for them."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

from gemma4_core.devices import machine

ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
"""A system call on x86-64, its request and the state asked for (Linux, Documentation/arch/x86/xstate.rst)."""


def present() -> bool:
    """Whether the processor multiplies tiles of bf16, and the system is one that can be asked for them."""
    known = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    return known and {"amx_tile", "amx_bf16"} <= set(machine.processor().split())


@functools.cache
def permitted() -> bool:
    """Whether the processor has them and the system lets this process use them, all its threads included.

    Without permission the instructions end the process, so whoever compiles them asks here first.
    """
    return present() and ctypes.CDLL(None).syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
