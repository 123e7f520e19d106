"""Kernels for training, in C: compiled once for this machine, and launched with sizes that are filled into a copy
of the object. Nothing is generated or compiled for new sizes."""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinygrad import Device, Tensor, dtypes
from tinygrad.dtype import DType
from tinygrad.helpers import Context as TinygradContext

from gemma4_core.devices import machine
from gemma4_plugins.devices.cpu.kernels import build, towers
from gemma4_plugins.devices.source_kernels import launch

HERE = Path(__file__).parent
SHARED = (towers.HERE / "tiles.c", HERE / "numbers.c")
"""What every unit begins with."""
NUMBERS, MARK = 24, 0x67346E756D626572
"""Places for numbers in an object, and what stands at the first of them."""
TYPES = (dtypes.float32, dtypes.bfloat16)

Numbers = Sequence[int | float]


@lru_cache
def target_of(device: str) -> Any:
    """What tinygrad compiles for there."""
    with TinygradContext(ALLOW_DEVICE_USAGE=1):  # layers that training recomputes are traced with devices locked
        return Device[device].renderer.target


@lru_cache
def usable(device: str) -> bool:
    """Whether this is tinygrad's CPU device with its C renderer."""
    with TinygradContext(ALLOW_DEVICE_USAGE=1):
        return sys.byteorder == "little" and towers.usable(device)


def source(unit: str, bf16: bool, files: Sequence[Path] = ()) -> str:
    """The C source of a unit, which ``files`` come before, for one type of numbers."""
    defines = [*build.tuning(), f"NUMBERS {NUMBERS}", f"MARK {MARK:#x}ll", f"BF16 {int(bf16)}"]
    prologue = "".join(f"#define {define}\n" for define in defines) + f"// {machine.processor()}\n"
    return prologue + "".join(file.read_text() for file in (*SHARED, *files, HERE / f"{unit}.c"))


@lru_cache
def compiled(device: str, unit: str, bf16: bool, files: tuple[Path, ...]) -> bytes | None:
    """The object of a unit, None where it cannot be compiled: then the portable form serves."""
    mark = struct.pack("<Qq", MARK, ~MARK)
    try:
        with TinygradContext(ALLOW_DEVICE_USAGE=1):
            found = bytes(Device[device].compiler.compile_cached(source(unit, bf16, files)))
        if found.count(mark) != 1:
            raise ValueError("its numbers are not found")
    except Exception as error:
        if os.environ.get("GEMMA4_DEBUG") == "1":
            print(f"gemma4: {unit}.c: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return found


def filled(found: bytes, numbers: Numbers) -> bytes:
    """An object with these numbers."""
    assert len(numbers) <= NUMBERS
    words = b"".join(struct.pack("<fi", n, 0) if isinstance(n, float) else struct.pack("<q", n) for n in numbers)
    at = found.index(struct.pack("<Qq", MARK, ~MARK))
    return found[:at] + words.ljust(8 * NUMBERS, b"\0") + found[at + 8 * NUMBERS :]


def run(
    unit: str, name: str, numbers: Numbers, out: tuple[tuple[int, ...], DType], inputs: Sequence[Tensor], bf16: bool,
    operations: int, files: tuple[Path, ...] = (),
) -> Tensor | None:
    """The result of a unit's kernel on all cores; None where it cannot be had.

    Args:
        numbers: what the kernel reads beside its tensors; ``name`` and they tell kernels apart.
        out: shape and dtype of the result.
        files: sources that the unit needs.
    """
    device = str(inputs[0].device)
    found = compiled(device, unit, bf16, files)
    if found is None:
        return None
    parts = machine.thread_count()
    binary = filled(found, (1 + len(inputs), parts, *numbers))
    return launch(name, f"// {name}", out, inputs, target_of(device), (parts, 1, 1), parts=parts, operations=operations,
                  binary=binary)


def served(*tensors: Tensor | None) -> bool:
    """Whether these are tensors of one type that there are kernels for, with something in them."""
    given = [t for t in tensors if t is not None]
    kinds = {t.dtype for t in given}
    sizes = all(isinstance(n, int) and n > 0 for t in given for n in t.shape)
    return len(kinds) == 1 and kinds <= set(TYPES) and sizes and usable(str(given[0].device))


def count(shape: Sequence[Any]) -> int:
    """Numbers in a tensor of a shape."""
    return math.prod(int(n) for n in shape)
