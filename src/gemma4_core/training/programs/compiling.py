"""The programs of a model: traced, compiled together, and kept on disk between processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tinygrad import Tensor, UOp
from tinygrad.dtype import DType
from tinygrad.engine.realize import compile_linear
from tinygrad.helpers import Context as TinygradContext
from tinygrad.uop import Ops

from gemma4_core.ops import Operations
from gemma4_core.ops.dropout import dropping
from gemma4_core.ops.late import LateBinary, late_binaries
from gemma4_core.training.programs.program import Program
from gemma4_core.training.programs.running import Arena
from gemma4_core.training.programs.store import ProgramStore
from gemma4_core.training.programs.tracing import placeholder, trace

Form = tuple[tuple[int, ...], DType]
"""Shape and type of a tensor."""


@dataclass(frozen=True)
class Task:
    """A program to be traced."""

    stage: Callable[[], Callable[..., Mapping[str, Tensor]]]
    inputs: Mapping[str, Form]
    weights: Mapping[str, Tensor]
    drops: bool = False
    """Whether it drops numbers (``gemma4_core.ops.dropout``)."""

    def trace(self, device: str) -> Program:
        given = {name: placeholder(*shape, dtype=dtype, device=device) for name, (shape, dtype) in self.inputs.items()}
        with late_binaries(), dropping(self.drops):
            return trace(self.stage(), given, self.weights)


@dataclass
class Programs:
    """The compiled programs of a model, by what they do; passes of other shapes and modes share them."""

    device: str
    operations: Operations | None = None
    done: dict[Hashable, Program] = field(default_factory=dict)
    arena: Arena = field(init=False)
    """Memory that all replays of these programs use."""

    def __post_init__(self) -> None:
        self.arena = Arena(self.device)

    def add(self, tasks: Mapping[Hashable, Task]) -> None:
        """Have the programs of these tasks: missing ones are read, or traced and compiled, and then stored."""
        missing = {key: task for key, task in tasks.items() if key not in self.done}
        if not missing:
            return
        store = ProgramStore(self.device, self.operations)
        for key in missing:
            if (found := store.fetch(key)) is not None:
                self.done[key] = found
        plain_below = 0 if self.operations is None else self.operations.plain_below
        new = compiled({k: task.trace(self.device) for k, task in missing.items() if k not in self.done}, plain_below)
        self.done |= new
        for key, program in new.items():
            store.store(key, program)


def with_binaries(calls: Sequence[UOp]) -> list[UOp]:
    """The calls with the machine code that was left for later, made by several threads."""
    late = list({one: None for call in calls if isinstance(one := binary_of(call), LateBinary)})
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        made = dict(zip(late, pool.map(lambda one: one(), late), strict=True))
    found = []
    for call in calls:
        if isinstance(one := binary_of(call), LateBinary):
            program = call.src[0]
            program = program.replace(src=(*program.src[:-1], UOp(Ops.BINARY, arg=made[one])))
            call = call.replace(src=(program, *call.src[1:]))
        found.append(call)
    return found


def binary_of(call: UOp) -> object:
    """A call's machine code, None where there is none yet."""
    program = call.src[0]
    return program.src[-1].arg if program.op is Ops.PROGRAM and program.src[-1].op is Ops.BINARY else None


def compiled(programs: Mapping[Any, Program], plain_below: int = 0) -> dict[Any, Program]:
    """The programs with their kernels lowered and compiled, those that several share once; for ``plain_below`` see
    ``Operations``."""
    calls = with_binaries([call for program in programs.values() for call in program.calls])
    plain = [index for index, call in enumerate(calls) if elementwise_below(call, plain_below)]
    with TinygradContext(NOOPT=1):
        small = compile_linear(UOp(Ops.LINEAR, src=tuple(calls[index] for index in plain))).src if plain else ()
    for index, call in zip(plain, small, strict=True):
        calls[index] = call
    done = iter(compile_linear(UOp(Ops.LINEAR, src=tuple(calls))).src)
    return {
        key: Program(tuple(next(done) for _ in program.calls), program.names, program.own)
        for key, program in programs.items()
    }


def elementwise_below(call: UOp, most: int) -> bool:
    """Whether a kernel adds up nothing and has arguments of fewer bytes than this."""
    ast = call.src[0]
    if ast.op is not Ops.SINK or sum(b.max_numel() * b.dtype.itemsize for b in call.src[1:]) >= most:
        return False
    return not any(node.op is Ops.REDUCE for node in ast.toposort())
