"""The C sources beside this module as code in this process."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinygrad import Device

from gemma4_core.devices import machine
from gemma4_plugins.devices.cpu.kernels.amx import permitted
from gemma4_plugins.devices.native import loader

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Program:
    """Code in this process, as the thread pool runs it: its address, and as a function that releases the GIL."""

    addr: int
    fxn: Callable[..., None]


@functools.cache
def load(names: tuple[str, ...], defines: tuple[str, ...] = ()) -> Program:
    """The first function of the .c files ``names`` beside this module, compiled as one unit.

    The compiler's cache is keyed by the source, so the processor's name and features go into it.
    """
    Device["CPU"]  # the device's set-up picks the compiler
    prologue = "".join(f"#define {define}\n" for define in (*defines, *tuning())) + f"// {machine.processor()}\n"
    address = loader.load(prologue + "".join((HERE / name).read_text() for name in names))
    return Program(address, ctypes.CFUNCTYPE(None)(address))


def tuning() -> tuple[str, ...]:
    """Definitions that choose between forms which this processor's instruction set leaves open.

    Intel's want two rows and fetches ahead for products with a vector (products.c). They multiply pairs of bf16 in
    vector registers at a quarter of the rate of fp32, so tile registers do it there, or else fp32.
    """
    intel = ("STREAMS 2", "AHEAD 4096", "SLOW_PAIRS 1") if "GenuineIntel" in machine.processor() else ()
    return (*intel, "AMX_PERMITTED 1") if permitted() else intel


def loadable() -> bool:
    """Whether code can be placed into this process here: Linux on x86-64 or arm64."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64")
