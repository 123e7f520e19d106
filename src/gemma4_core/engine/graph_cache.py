"""Captured graphs on disk: a new process replays what an earlier one traced, lowered and compiled.

A graph is found again by what it is made of: the model's shapes and settings, the operations and kinds of matrices, and
the packages that these come from, ours and others' alike, in the state that their files are in.

A file holds what a graph runs and no buffer's content: buffers of the model and of its K/V cache are stored by name,
buffers that the graph itself writes are allocated anew. A graph that reads any other buffer is not stored, because
nothing would tell whether its content is still the same. Files are pickles, and so code: they are read only from this
user's own cache folder, and where nobody else could have written them. Each begins with a digest: a pickle with a
flipped bit may load and crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import os
import pickle
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygrad import Device, Tensor
from tinygrad.dtype import AddrSpace, DType
from tinygrad.helpers import ContextVar
from tinygrad.uop.ops import Ops, UOp

from gemma4_core.checkpoint.atomic import atomic_file
from gemma4_core.devices import machine
from gemma4_core.devices.machine import is_ours
from gemma4_core.plugins import registry
from gemma4_core.plugins.packages import package_of, package_state

if TYPE_CHECKING:
    from tinygrad.engine.jit import CapturedJit

    from gemma4_core.model.model import GemmaModel
    from gemma4_core.model.slots import SlotStore
    from gemma4_core.weights import ExpertStack, Matrix

MAX_FILES = 256
"""Graphs stored at most; the least recently used are deleted first."""
STALE_SECONDS = 3600.0
"""Age at which a temporary file is taken to be left over from a killed process."""
DIGEST = hashlib.sha256().digest_size
OWN = {"gemma4_core", "tinygrad"}
"""The packages that have a part in every graph."""
FUNCTIONS = ("linear", "rms_norm", "rope", "attention", "gated_mlp", "experts", "logits", "sample", "layers")
"""The fields of ``Operations`` whose functions run inside graphs."""
SILENT = ("DEBUG", "PROFILE", "VIZ")
"""tinygrad's settings that change nothing about a graph."""


def is_global(uop: UOp) -> bool:
    """Whether this stands for memory of a device, and not for a kernel's registers or local memory."""
    return uop.op is Ops.BUFFER and uop.arg.addrspace is AddrSpace.GLOBAL


class UnknownBuffer(Exception):
    """A graph reads a buffer that has no name: nothing would tell whether it holds the same in another process."""


class Writer(pickle.Pickler):
    """Pickles a graph; buffers become names or places to make anew."""

    def __init__(self, file: Any, names: Mapping[UOp, str], written: set[UOp]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.names, self.written = names, written
        self.made: dict[UOp, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is not UOp or not is_global(obj):
            return None
        if obj in self.names:
            return "named", self.names[obj]
        if obj not in self.written:
            raise UnknownBuffer(f"{obj.arg}")
        return "made", self.made.setdefault(obj, len(self.made)), obj.device, int(obj.shape[0]), obj.dtype


class Reader(pickle.Unpickler):
    """Unpickles what ``Writer`` wrote; names become buffers of the model at hand."""

    def __init__(self, file: Any, buffers: Mapping[str, UOp]) -> None:
        super().__init__(file)
        self.buffers = buffers
        self.made: dict[int, UOp] = {}

    def persistent_load(self, pid: Any) -> UOp:
        kind, name, *sizes = pid
        if kind == "named":
            return self.buffers[name]
        if name not in self.made:
            self.made[name] = UOp.new_buffer(*sizes)
        return self.made[name]


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
    wanted = os.environ.get("GEMMA4_KEEP_GRAPHS", "").strip() != "0"
    return wanted and not model.transformed and parts_of(model) is not None


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
        name = hashlib.sha256(f"{self.what} {key!r}".encode()).hexdigest()[:32]
        folder = machine.cache_dir() / "graphs"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}.graph"

    def fetch(self, key: object) -> CapturedJit | None:
        """The captured graph of an earlier process, None where there is none that may be used. A file that is damaged
        or cannot be read any more is deleted: the graph is captured again."""
        try:
            path = self.path(key)
            with open(path, "rb") as file:
                if not is_ours(os.fstat(file.fileno())) or not is_ours(path.parent.lstat()):
                    return None
                found = file.read()
        except Exception:  # no such file, or no folder for it
            return None
        try:
            content = memoryview(found)[DIGEST:]
            if digest(path, content) != found[:DIGEST]:
                raise ValueError("damaged")
            _, captured = Reader(io.BytesIO(content), self.buffers).load()
            os.utime(path)
        except FileNotFoundError:  # another process made room
            pass
        except Exception:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
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
            with atomic_file(path) as file:
                os.chmod(file.name, 0o600)
                file.write(digest(path, made.getbuffer()))
                file.write(made.getbuffer())
        except Exception:  # a buffer without a name, or a full disk: the graph works without being stored
            return False
        make_room(path.parent)
        return True


def digest(path: Path, content: memoryview) -> bytes:
    """The first bytes of a graph's file; they do not match a file that was damaged or renamed."""
    found = hashlib.sha256(path.name.encode())
    found.update(content)
    return found.digest()


def make_room(folder: Path) -> None:
    """Delete the least recently used graphs, and temporary files of killed processes."""
    times = {}
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may delete it at the same time
            times[file] = file.stat().st_mtime
    stored = sorted((file for file in times if file.suffix == ".graph"), key=lambda file: times[file])
    stale = [file for file in times if file.suffix == ".tmp" and times[file] < time.time() - STALE_SECONDS]
    for file in [*stored[:-MAX_FILES], *stale]:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def surroundings(device: str) -> tuple[object, ...]:
    """What a graph depends on besides the model: versions, the device, the processor, tinygrad's settings."""
    settings = {name: repr(value.value) for name, value in sorted(ContextVar._cache.items()) if name not in SILENT}
    opened = Device[device]
    return (importlib.metadata.version("tinygrad"), platform.python_version(), device,
            platform.machine(), machine.processor(),
            repr(opened.renderer.target), type(opened.renderer).__name__, settings)  # fmt: skip
