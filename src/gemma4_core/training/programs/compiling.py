"""The programs of a model: traced, compiled together, and kept on disk between processes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinygrad import Tensor, UOp
from tinygrad.dtype import DType
from tinygrad.engine.realize import compile_linear
from tinygrad.uop import Ops

from gemma4_core.ops import Operations
from gemma4_core.training.programs.program import Program
from gemma4_core.training.programs.running import Arena
from gemma4_core.training.programs.store import ProgramStore
from gemma4_core.training.programs.tracing import placeholder, trace

Form = tuple[tuple[int, ...], DType]
"""Shape and type of a tensor."""


@dataclass(frozen=True)
class Task:
    """A program to be traced."""

    piece: Callable[[], Callable[..., Mapping[str, Tensor]]]
    inputs: Mapping[str, Form]
    weights: Mapping[str, Tensor]

    def trace(self, device: str) -> Program:
        given = {name: placeholder(*shape, dtype=dtype, device=device) for name, (shape, dtype) in self.inputs.items()}
        return trace(self.piece(), given, self.weights)


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
        new = compiled({k: task.trace(self.device) for k, task in missing.items() if k not in self.done})
        self.done |= new
        for key, program in new.items():
            store.store(key, program)


def compiled(programs: Mapping[Any, Program]) -> dict[Any, Program]:
    """The programs with their kernels lowered and compiled, those that several share once."""
    every = UOp(Ops.LINEAR, src=tuple(call for program in programs.values() for call in program.calls))
    done = iter(compile_linear(every).src)
    return {
        key: Program(tuple(next(done) for _ in program.calls), program.names, program.own)
        for key, program in programs.items()
    }
