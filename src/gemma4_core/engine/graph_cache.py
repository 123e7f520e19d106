"""Captured graphs on disk: a new process replays what an earlier one traced, lowered and compiled.

A graph is found again by what it is made of: the model's shapes and settings, the operations and kinds of matrices, and
the packages that these come from, ours and others' alike, in the state that their files are in.

A file holds what a graph runs and no buffer's content: buffers of the model and of its K/V cache are stored by name,
buffers that the graph itself writes are allocated anew. A graph that reads any other buffer is not stored, because
nothing would tell whether its content is still the same.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor
from tinygrad.dtype import DType
from tinygrad.uop.ops import UOp

from gemma4_core.engine import graph_files
from gemma4_core.engine.graph_files import Reader, Writer, surroundings
from gemma4_core.plugins import registry
from gemma4_core.plugins.packages import package_of, package_state

if TYPE_CHECKING:
    from tinygrad.engine.jit import CapturedJit

    from gemma4_core.model.model import GemmaModel
    from gemma4_core.model.slots import SlotStore
    from gemma4_core.weights import ExpertStack, Matrix

OWN = {"gemma4_core", "tinygrad"}
"""The packages that have a part in every graph."""
FUNCTIONS = ("linear", "rms_norm", "rope", "attention", "gated_mlp", "experts", "logits", "sample", "layers")
"""The fields of ``Operations`` whose functions run inside graphs."""


def named_buffers(model: GemmaModel, storage: SlotStore | None, tables: Mapping[str, Tensor]) -> dict[str, UOp]:
    """The buffers that a graph of this model may read and write besides its inputs and its own, by name."""
    tensors = {f"{name}/{part}": t for name, place in model.places.items() for part, t in place.matrix.parts().items()}
    tensors |= {f"tensor/{name}": tensor for name, tensor in model.tensors.items()}
    tensors |= {f"table/{name}": tensor for name, tensor in tables.items()}
    if model.operations.layers is not None:
        tensors |= {f"number/{i}": tensor for i, tensor in enumerate(model.text.layer_numbers)}
    if model.suppressed is not None:
        tensors["suppressed"] = model.suppressed
    if storage is not None:
        tensors |= {f"cache/{i}": tensor for i, tensor in enumerate(storage.layers) if tensor is not None}
    return {name: tensor.uop.base for name, tensor in tensors.items()}


def can_be_stored(model: GemmaModel) -> bool:
    """Whether this model's graphs can be identified in another process. A model that a transform has changed cannot: it
    may differ in anything. Operations and matrices must come from packages whose files can be compared."""
    return graph_files.wanted() and not model.transformed and parts_of(model) is not None


def parts_of(model: GemmaModel) -> tuple[object, ...] | None:
    """What a model's graphs depend on besides its config and weights: the operations' functions, the class and settings
    of every matrix, and the state of the packages that these come from. None where any of it cannot be determined."""
    operations = {name: getattr(model.operations, name) for name in FUNCTIONS}
    made: set[Any] = {one for one in operations.values() if one is not None}
    matrices = []
    for name, place in model.places.items():
        state = plain_state(place.matrix)
        if state is None:
            return None
        made.add(type(place.matrix))
        matrices.append((name, *named(type(place.matrix)), state))
    packages = {package_of(one) for one in made}
    plugins = registry.manager.plugins()
    states = [package_state(package, plugins) if package is not None else None for package in packages | OWN]
    if None in states:
        return None
    return (*sorted(map(repr, states)), *((name, *named(one)) for name, one in operations.items()), *matrices)


def plain_state(matrix: Matrix | ExpertStack) -> list[tuple[str, object]] | None:
    """A matrix's attributes besides its storage tensors: a graph may hold these values as constants. None where one of
    them is not a plain value."""
    stored = {id(tensor) for tensor in matrix.parts().values()}
    state = []
    for name, value in sorted(vars(matrix).items()) if hasattr(matrix, "__dict__") else ():
        if id(value) in stored:
            continue
        if not is_plain(value):
            return None
        state.append((name, value))
    return state


def is_plain(value: object) -> bool:
    """Whether ``repr`` tells all of a value."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes, DType))


def named(made: Any) -> tuple[str, str]:
    """Module and name of a function or class."""
    return getattr(made, "__module__", ""), getattr(made, "__qualname__", "")


def stored_graphs(model: GemmaModel, storage: SlotStore | None, length: int = 0) -> GraphCache | None:
    """Where a model's graphs against these slots outlive the process, None where they may not; ``length`` is what their
    rotation table holds beyond a slot's capacity."""
    if not can_be_stored(model):
        return None
    table = model.text.rotation_table(storage.capacity + length) if storage is not None else None
    pairs = (*table.sliding, *table.full) if table is not None else ()
    return GraphCache(model, storage, {str(i): tensor for i, tensor in enumerate(pairs)})


class GraphCache:
    """The stored graphs of one model and one K/V cache's buffers."""

    def __init__(self, model: GemmaModel, storage: SlotStore | None, tables: Mapping[str, Tensor]) -> None:
        self.buffers = named_buffers(model, storage, tables)
        sizes = {name: (uop.dtype, uop.shape) for name, uop in self.buffers.items()}
        self.what = repr((surroundings(str(model.device)), model.config, model.chunk, model.ple_host is not None,
                          storage.capacity if storage is not None else None, sizes, parts_of(model)))  # fmt: skip

    def path(self, key: object) -> Path:
        """The file of a graph; ``key`` says what it does."""
        return graph_files.stored(hashlib.sha256(f"{self.what} {key!r}".encode()).hexdigest()[:32])

    def fetch(self, key: object) -> CapturedJit | None:
        """The captured graph of an earlier process, None where there is none that may be used. A file that is damaged
        or cannot be read any more is deleted: the graph is captured again."""
        try:
            path = self.path(key)
        except OSError:
            return None
        content = graph_files.read(path)
        if content is None:
            return None
        try:
            _, captured = Reader(io.BytesIO(content), self.buffers).load()
        except Exception:
            graph_files.forget(path)
            return None
        return captured

    def store(self, key: object, captured: CapturedJit) -> bool:
        """Store a captured graph; whether that was possible."""
        names = {uop: name for name, uop in self.buffers.items()}
        # what a node is made of comes before it, so that pickling does not descend through the whole graph
        ordered = list(captured._linear.toposort())
        made = io.BytesIO()
        try:
            Writer(made, names, captured._written_uops).dump((ordered, captured))
            path = self.path(key)
        except Exception:  # a buffer without a name, or no folder: the graph works without being stored
            return False
        return graph_files.write(path, made.getbuffer())
