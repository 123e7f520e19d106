"""Kernel sources: the ``.cu`` files beside this module, put together with the constants that they are compiled for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from gemma4_plugins.kernels.cuda.plan import Plan

STEP_FILES = ("layout", "ring", "producer", "attention", "consumer", "experts", "head")
ENTRY = "decode_step"


@cache
def source_file(name: str) -> str:
    """One file's text."""
    return (Path(__file__).parent / f"{name}.cu").read_text(encoding="utf-8")


def step_source(plan: Plan) -> str:
    """The persistent step's source for one plan; complete but for the instruction set in ``primitives``."""
    return plan.defines() + "".join(source_file(name) for name in STEP_FILES)


def device_source(body: str) -> str:
    """A body with what it needs of the instruction set, as NVRTC gets it."""
    return source_file("primitives") + body
