"""Captured graphs on disk: a new process replays what an earlier one traced, lowered and compiled.

A graph is found again by what it is made of: the model's shapes and settings, the operations and kinds of matrices, and
the packages that these come from, ours and others' alike, in the state that their files are in.

A graph is kept as what it runs, without any buffer's content: buffers that the model or its cache own are named, those
that the graph itself writes are made anew. One that reads anything else is not kept, since nothing would tell whether
that is still the same. Files are pickles, which are code: they lie in this user's own cache folder and are read only
where nobody else could have written them. Each begins with a digest, since one with a flipped bit may load and crash.
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

    from gemma4_core.model.cache import Storage
    from gemma4_core.model.model import GemmaModel
    from gemma4_core.weights import ExpertStack, Matrix

MOST_FILES = 64
"""Graphs kept; the ones that were not read for longest go first."""
LEFT_SECONDS = 3600.0
"""Age from which a file that is half written is taken for one whose process was killed."""
DIGEST = hashlib.sha256().digest_size
OWN = {"gemma4_core", "tinygrad"}
"""The packages that have a part in every graph."""
FUNCTIONS = ("linear", "rms_norm", "rope", "attention", "gated_mlp", "experts", "logits", "sample", "layers")
"""What graphs are made of, in ``Operations``."""
SILENT = ("DEBUG", "PROFILE", "VIZ")
"""tinygrad's settings that change nothing about what is run."""


def is_global(uop: UOp) -> bool:
    """Whether this stands for memory of a device, and not for a kernel's registers or local memory."""
    return uop.op is Ops.BUFFER and uop.arg.addrspace is AddrSpace.GLOBAL


class NotKept(Exception):
    """A graph that reads what nobody named."""


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
            raise NotKept(f"{obj.arg}")
        return "made", self.made.setdefault(obj, len(self.made)), obj.device, int(obj.shape[0]), obj.dtype


class Reader(pickle.Unpickler):
    """The other way."""

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


def named_buffers(model: GemmaModel, storage: Storage | None, tables: Mapping[str, Tensor]) -> dict[str, UOp]:
    """What a graph of this model may read and write beside its inputs and its own buffers."""
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


def may_be_kept(model: GemmaModel) -> bool:
    """Whether it can be told what this model's graphs are made of: no transform has changed the model, since it may
    have changed anything, and its operations and matrices are of packages whose files can be told apart."""
    wanted = os.environ.get("GEMMA4_KEEP_GRAPHS", "").strip() != "0"
    return wanted and not model.transformed and parts_of(model) is not None


def parts_of(model: GemmaModel) -> tuple[object, ...] | None:
    """What a model's graphs are made of beside its config and weights: the operations by name, every kind of matrix and
    what it was made with, and the packages that all of these come from. None where that cannot be told."""
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
    """What a matrix was made with: a graph may hold these values as constants. None where it holds anything but plain
    values and its storage tensors."""
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
    """Whether a value says all that it is by ``repr``."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes, DType))


def named(made: Any) -> tuple[str, str]:
    """Module and name of a function or class."""
    return getattr(made, "__module__", ""), getattr(made, "__qualname__", "")


class KeptGraphs:
    """Where graphs of one model against one cache's buffers are kept."""

    def __init__(self, model: GemmaModel, storage: Storage | None, tables: Mapping[str, Tensor]) -> None:
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
        """Keep a captured graph. Whether that was possible."""
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
        except Exception:  # it reads what nobody named, or the disk is full: a graph that is not kept is as good
            return False
        make_room(path.parent)
        return True


def digest(path: Path, content: memoryview) -> bytes:
    """What stands before a graph's content in its file: one that is damaged or renamed has another one."""
    found = hashlib.sha256(path.name.encode())
    found.update(content)
    return found.digest()


def make_room(folder: Path) -> None:
    """Delete the graphs that were not read for longest, and what killed processes left half written."""
    times = {}
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may delete it at the same time
            times[file] = file.stat().st_mtime
    kept = sorted((file for file in times if file.suffix == ".graph"), key=lambda file: times[file])
    left = [file for file in times if file.suffix == ".tmp" and times[file] < time.time() - LEFT_SECONDS]
    for file in [*kept[:-MOST_FILES], *left]:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def surroundings(device: str) -> tuple[object, ...]:
    """What a graph depends on beside the model: code, versions, the device, the processor, tinygrad's settings."""
    settings = {name: repr(value.value) for name, value in sorted(ContextVar._cache.items()) if name not in SILENT}
    opened = Device[device]
    return (importlib.metadata.version("tinygrad"), platform.python_version(), device,
            platform.machine(), machine.processor(),
            repr(opened.renderer.target), type(opened.renderer).__name__, settings)  # fmt: skip
