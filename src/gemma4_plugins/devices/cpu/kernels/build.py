"""Compile C source with tinygrad's compiler, keep the object in its disk cache, and load it into this process."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinygrad import Device
from tinygrad.runtime.support.compiler_cpu import ClangCompiler
from tinygrad.runtime.support.elf import jit_loader

from gemma4_plugins.devices.cpu.kernels.amx import permitted

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Program:
    """Code in this process, as the thread pool runs it: its address, and as a function that releases the GIL."""

    addr: int
    fxn: Callable[..., None]
    memory: mmap.mmap


@functools.cache
def load(names: tuple[str, ...], defines: tuple[str, ...] = ()) -> Program:
    """The first function of the .c files ``names`` beside this module, compiled as one unit.

    The compiler's cache is keyed by the source, so the processor's name and features go into it.
    """
    Device["CPU"]  # the device's set-up picks the compiler
    prologue = "".join(f"#define {define}\n" for define in (*defines, *tuning())) + f"// {cpu_features()}\n"
    compiler = ClangCompiler([_arch(), "native"])
    image = jit_loader(compiler.compile_cached(prologue + "".join((HERE / name).read_text() for name in names)))
    flags = mmap.MAP_ANON | mmap.MAP_PRIVATE
    memory = mmap.mmap(-1, len(image), flags, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(image)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return Program(address, ctypes.CFUNCTYPE(None)(address), memory)


def tuning() -> tuple[str, ...]:
    """Definitions that choose between forms which this processor's instruction set leaves open.

    Intel's want two rows and fetches ahead for products with a vector (products.c). They multiply pairs of bf16 in
    vector registers at a quarter of the rate of fp32, so tile registers do it there, or else fp32.
    """
    intel = ("STREAMS 2", "AHEAD 4096", "SLOW_PAIRS 1") if "GenuineIntel" in cpu_features() else ()
    return (*intel, "AMX_PERMITTED 1") if permitted() else intel


def loadable() -> bool:
    """Whether code can be placed into this process here: Linux on x86-64 or arm64."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64")


def _arch() -> str:
    return "x86_64" if platform.machine() in ("x86_64", "AMD64") else "arm64"


@functools.cache
def cpu_features() -> str:
    """Model and feature flags of the first processor, as the system names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU part")
    return " ".join(line.split(":", 1)[1].strip() for line in lines if line.startswith(wanted))
