"""Compiled programs on disk: a new process links what an earlier one traced, lowered and compiled.

A program is found again by what it is made of: the layer's form, the shapes, the operations, and the packages that
these come from in the state that their files are in. What cannot be told is not stored.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from tinygrad import UOp

from gemma4_core.engine import graph_files
from gemma4_core.engine.graph_cache import FUNCTIONS, OWN, named
from gemma4_core.engine.graph_files import Reader, Writer, surroundings
from gemma4_core.ops import Operations
from gemma4_core.plugins import registry
from gemma4_core.plugins.packages import package_of, package_state
from gemma4_core.training.programs.kinds import UNKNOWN
from gemma4_core.training.programs.program import Program


class ProgramStore:
    """The stored programs of one device and table of operations."""

    def __init__(self, device: str, operations: Operations | None) -> None:
        self.device = device
        self.functions = [] if operations is None else [
            one for name in (*FUNCTIONS, "matmul") if (one := getattr(operations, name)) is not None
        ]

    def path(self, key: Hashable) -> Path | None:
        """The file of a program, None where it may not be stored."""
        if not graph_files.wanted():
            return None
        made: set[Any] = set(self.functions)
        text = described(key, made)
        packages = {package_of(one) for one in made}
        if text is None or None in packages:
            return None
        plugins = registry.manager.plugins()
        states = [package_state(package, plugins) for package in {str(p) for p in packages} | OWN]
        if None in states:
            return None
        operations = [named(one) for one in self.functions]
        what = repr((sorted(map(repr, states)), operations, surroundings(self.device), text))
        try:
            return graph_files.stored(hashlib.sha256(what.encode()).hexdigest()[:32])
        except OSError:
            return None

    def fetch(self, key: Hashable) -> Program | None:
        """The program of an earlier process, None where there is none that may be used."""
        path = self.path(key)
        content = graph_files.read(path) if path is not None else None
        if path is None or content is None:
            return None
        try:
            _, program = Reader(io.BytesIO(content), {}).load()
            assert isinstance(program, Program)
        except Exception:
            graph_files.forget(path)
            return None
        return program

    def store(self, key: Hashable, program: Program) -> bool:
        """Store a compiled program; whether that was possible: not where it reads a buffer that has no name."""
        path = self.path(key)
        if path is None:
            return False
        # what a node is made of comes before it, so that pickling does not descend through the whole graph
        ordered = list(UOp.sink(*program.calls).toposort())
        made = io.BytesIO()
        try:
            Writer(made, {}, {*program.names, *program.own}).dump((ordered, program))
        except Exception:
            return False
        return graph_files.write(path, made.getbuffer())


def described(value: Any, made: set[Any]) -> str | None:
    """A key as text that is the same in every process, None where a part of it is known by its place in memory. Classes
    and functions are added to ``made``."""
    if isinstance(value, tuple):
        parts = [described(one, made) for one in value]
        return None if value[:1] == (UNKNOWN,) or None in parts else f"({', '.join(map(str, parts))})"
    if isinstance(value, (frozenset, set)):
        parts = [described(one, made) for one in value]
        return None if None in parts else f"{{{', '.join(sorted(map(str, parts)))}}}"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        made.add(value)
        return repr(named(value))
    if hasattr(value, "__dataclass_fields__"):
        held = (getattr(value, name) for name in value.__dataclass_fields__)
        return described((type(value).__qualname__, *held), made)
    return repr(value)
