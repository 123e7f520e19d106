"""Kernel sources: the ``.cu`` files beside this module, put together with the constants that they are compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from gemma4_plugins.devices.cuda.kernels.plan import Plan

STEP_FILES = ("history", "layout", "ring", "producer", "attention", "slices", "best", "vectors", "consumer", "products", "experts", "head")
ENTRY = "decode_step"
CHUNK_FILES = ("expand", "product", "gemm", "rows", "chunk_attention")
WIDE_FILES = ("wgmma", "product", "gemm_wide")


def defines(constants: Mapping[str, int | float | str]) -> str:
    """Constants as preprocessor lines."""
    show = lambda v: f"{v!r}f" if isinstance(v, float) else str(v)  # noqa: E731
    return "".join(f"#define {name} {show(value)}\n" for name, value in constants.items())


@cache
def source_file(name: str) -> str:
    """One file's text."""
    return (Path(__file__).parent / f"{name}.cu").read_text(encoding="utf-8")


def source_of(file: str, values: Mapping[str, int | float]) -> tuple[str, str]:
    """Name and source of a file's kernel, but for the instruction set; the name tells all values."""
    words = [str(value).replace(".", "p").replace("-", "m").replace("+", "") for value in values.values()]
    name = "_".join([file, *words])
    return name, defines({"NAME": name, **values}) + source_file(file)


def step_source(plan: Plan) -> str:
    """The persistent step's source for one plan; complete but for the instruction set in ``primitives``."""
    return defines(plan.constants) + "".join(source_file(name) for name in STEP_FILES)


def chunk_source(constants: Mapping[str, int | float]) -> str:
    """The kernels of a chunk of positions."""
    return defines(constants) + "".join(source_file(name) for name in CHUNK_FILES)


def wide_source() -> str:
    """Products on Hopper's warpgroup matrix unit; for any model."""
    return "".join(source_file(name) for name in WIDE_FILES)


def choose_source(constants: Mapping[str, int | float]) -> str:
    """The kernel that draws a token."""
    return defines(constants) + source_file("history") + source_file("choose")


def expand_source() -> str:
    """The kernel that turns int8 numbers into bf16."""
    return device_source(source_file("expand"))


def device_source(body: str) -> str:
    """A body with what it needs of the instruction set, as NVRTC gets it."""
    return source_file("primitives") + body
