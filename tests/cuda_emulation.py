"""CUDA kernels without a GPU: their source compiled for the host, where each thread is a fiber, over tensors of
tinygrad's CPU device. Replaces the driver calls of ``gemma4_plugins.devices.cuda.kernels.launch``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor

from gemma4_plugins.devices.cuda.kernels import launch

HEADER = Path(__file__).parent / "emulator" / "cuda_threads.h"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-w", *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"))


def build(source: Path, library: Path) -> None:
    """A shared library of a C++ file, by a compiler on the path or the ``ziglang`` package's.

    The latter would first build its C++ library for a minute: what this needs of it stands in the header, and what is
    needed of C is in this process already.
    """
    found = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if found:
        subprocess.run([found, *FLAGS, "-shared", str(source), "-o", str(library)], check=True)
        return
    zig, unit = [sys.executable, "-m", "ziglang"], library.with_suffix(".o")
    alone = ("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")
    subprocess.run([*zig, "c++", *FLAGS, *alone, "-c", str(source), "-o", str(unit)], check=True)
    subprocess.run([*zig, "cc", "-shared", "-nostdlib", str(unit), "-o", str(library)], check=True)
    unit.unlink()


KERNEL = re.compile(r"(?:\bKERNELS?\([^)]*\)|__global__\s+void)\s+(\w+)\s*\(([^)]*)\)\s*{")


def entry(name: str, parameters: str) -> str:
    """A host function ``launch_NAME(width, height, threads, shared bytes, …)`` for a kernel."""
    parameters = " ".join(parameters.split())
    names = ", ".join(part.split()[-1].lstrip("*") for part in parameters.split(","))
    return (
        f'\nextern "C" void launch_{name}(int width_, int height_, int depth_, int threads_, size_t shared_, {parameters}) {{\n'
        f"  emulator::run(width_, height_, depth_, threads_, shared_, [=] {{ {name}({names}); }});\n}}\n"
    )


CONDITION = re.compile(r"^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else|endif)\b(.*)$", re.MULTILINE)


def conditions(before: str) -> list[str]:
    """The conditions of the preprocessor that hold behind a text."""
    found: list[tuple[str, str]] = []
    """Each with what was asked before it."""
    for word, rest in CONDITION.findall(before):
        if word.startswith("if"):
            found.append(("0", rest if word == "if" else f"{'!' * (word == 'ifndef')}defined({rest})"))
            continue
        asked = "({}) || ({})".format(*found.pop())
        if word != "endif":
            found.append((asked, f"!({asked})" + (f" && ({rest})" if word == "elif" else "")))
    return [condition for _, condition in found]


def entries(source: str) -> str:
    """Host functions for all kernels of a source, each under the conditions that its kernel stands under."""
    made = ""
    for kernel in KERNEL.finditer(source):
        held = conditions(source[: kernel.start()])
        made += "".join(f"\n#if {one}" for one in held) + entry(*kernel.groups()) + "#endif\n" * len(held)
    return made


@cache
def compiled(source: str) -> ctypes.CDLL:
    """All kernels of a source as host functions."""
    text = f'#include "{HEADER}"\n{source}{entries(source)}'
    key = hashlib.sha256((text + HEADER.read_text(encoding="utf-8")).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"gemma4-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        (folder / f"{key}.cpp").write_text(text, encoding="utf-8")
        partial = folder / f"{key}.{os.getpid()}.so"
        build(folder / f"{key}.cpp", partial)
        partial.replace(library)
    return ctypes.CDLL(str(library))


class EmulatedKernel:
    """Stands in for ``launch.Kernel``."""

    def __init__(
        self, source: str, name: str, threads: int, shared_bytes: int = 0, features: str = ""
    ) -> None:  # fmt: skip
        self.function = getattr(compiled(source), f"launch_{name}")
        self.threads, self.shared_bytes = threads, shared_bytes

    def resident_blocks(self) -> int:
        return 1

    def launch(self, width: int, arguments: Sequence[Any], height: int = 1, depth: int = 1) -> None:
        sizes = map(ctypes.c_int, (width, height, depth, self.threads))
        self.function(*sizes, ctypes.c_size_t(self.shared_bytes), *arguments)


class EmulatedHostBuffer:
    """Stands in for ``launch.HostBuffer``."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.array = np.zeros(shape, dtype)
        self.address = self.array.ctypes.data


def address(tensor: Tensor) -> int:
    """Where a realized CPU tensor lies."""
    return int(tensor.uop.buffer.ensure_allocated().get_buf("CPU").va_addr)


def emulate(patch: pytest.MonkeyPatch, blocks: int = 5, shared_bytes: int = 230_000) -> None:
    """Put the emulation in the driver's place."""
    numbers = {
        "MULTIPROCESSOR_COUNT": blocks, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": shared_bytes, "CLOCK_RATE": 1_000_000,
        "COMPUTE_CAPABILITY_MAJOR": 9,
    }  # fmt: skip
    patch.setattr(launch, "DEVICE", "CPU")
    patch.setattr(launch, "attribute", numbers.__getitem__)
    patch.setattr(launch, "address", address)
    patch.setattr(launch, "Kernel", EmulatedKernel)
    patch.setattr(
        launch,
        "kernels",
        lambda source, wanted, features="": {n: EmulatedKernel(source, n, *w) for n, w in wanted.items()},
    )
    patch.setattr(launch, "HostBuffer", EmulatedHostBuffer)
    patch.setattr(launch, "wait", lambda: None)
