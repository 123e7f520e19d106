"""The ``int8`` checkpoint format: matrices as symmetric row-wise int8 with fp32 scales, everything else as it was.

A quantised matrix lies under its own name as I8 ``[..., out, in]`` beside ``<name>_scale`` F32 ``[..., out]``: a weight
is its number times the scale of its row. config.json keeps ``dtype``, the type that the model computes in, and names
the quantised tensors under ``gemma4_format``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.convert import STORED
from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.rows import BLOCK, HostWeight
from gemma4_core.checkpoint.writer import MAX_SHARD_BYTES, Planned, write_shards
from gemma4_core.config import GemmaConfig, expected_text_tensors, ignorable, released_name
from gemma4_core.contracts import CheckpointFormat, Context, TensorInfo
from gemma4_core.errors import CheckpointError, summarise
from gemma4_core.formatting import shown, shown_path
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.weights import DenseMatrix, DenseStack, ExpertStack, Matrix
    from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack

KEY, NAME, VERSION = "gemma4_format", "int8", 1
SCALE = "_scale"
LARGEST = 127
OTHERS = ("quantization_config", "quantization")
"""Keys of formats that are not ours."""


def quantisable(config: GemmaConfig, name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is one that this format quantises: the text model's matrices, stacks and tables, no router."""
    expected = expected_text_tensors(config)
    name = released_name(config, name, expected)
    known = name in expected or (ignorable(config, name) and name.endswith("_proj.weight"))
    return known and len(shape) >= 2 and not name.endswith("router.proj.weight")


def manifest(names: Iterable[str]) -> dict[str, Any]:
    """What config.json says of quantised tensors."""
    return {KEY: {"name": NAME, "version": VERSION, "tensors": sorted(names)}}


# ---------------------------------------------------------------------------------------------------- reading


class Int8Source:
    """An open folder. Headers, manifest and scales are checked."""

    def __init__(self, files: CheckpointFiles, quantised: frozenset[str]) -> None:
        self.files, self.quantised = files, quantised
        stored = files.infos
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(info.dtype, info.shape, info.nbytes + stored[name + SCALE].nbytes)
            if name in quantised else info
            for name, info in stored.items() if not is_scale(name, quantised)
        }

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A plain tensor on a device; a quantised one becomes dense."""
        if name not in self.quantised:
            return self.files.tensor(name, device, dtype)
        hold = self.stack if len(self.infos[name].shape) == 3 else self.matrix
        return hold(name, device, dtype).dense().contiguous().realize()

    def matrix(self, name: str, device: str, dtype: Any) -> Int8Matrix | DenseMatrix:
        """The matrix ``[out, in]``, int8 where it is stored so."""
        from gemma4_core.weights import DenseMatrix
        from gemma4_plugins.layouts.int8 import Int8Matrix

        if name not in self.quantised:
            return DenseMatrix(self.files.tensor(name, device, dtype))
        return Int8Matrix(*self._parts(name, device), dtype)

    def stack(self, name: str, device: str, dtype: Any) -> Int8Stack | DenseStack:
        """The experts ``[experts, out, in]``, int8 where they are stored so."""
        from gemma4_core.weights import DenseStack
        from gemma4_plugins.layouts.int8 import Int8Stack

        if name not in self.quantised:
            return DenseStack(self.files.tensor(name, device, dtype))
        return Int8Stack(*self._parts(name, device), dtype)

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]``."""
        if name not in self.quantised:
            return self.files.rows(name, in_memory)
        table, scale = self._bits(name), self.files.array(name + SCALE)
        held = np.array(table) if in_memory else table

        def rows(ids: np.ndarray) -> np.ndarray:
            picked = held[np.asarray(ids)].astype(np.float32)
            picked *= scale[np.asarray(ids)][..., None]
            return picked

        return rows

    def close(self) -> None:
        """Close the files; what was handed out stays valid."""
        self.files.close()

    def _bits(self, name: str) -> np.ndarray:
        return np.frombuffer(self.files.bytes(name), np.int8).reshape(self.infos[name].shape)

    def _parts(self, name: str, device: str) -> tuple[Tensor, Tensor]:
        from tinygrad import dtypes

        return self.files.tensor(name, device, dtypes.int8), self.files.tensor(name + SCALE, device, dtypes.float32)


def is_scale(name: str, quantised: frozenset[str]) -> bool:
    """Whether a stored tensor is the scale of a quantised one."""
    return name.endswith(SCALE) and name.removesuffix(SCALE) in quantised


def matches(context: Context) -> bool:
    """Whether config.json has our manifest, or, without any, the files hold int8 tensors."""
    if context.folder is None:
        return False
    entry = context.raw_config.get(KEY)
    if entry is not None:
        named = entry.get("name") if isinstance(entry, dict) else None
        return not isinstance(named, str) or named == NAME
    if any(context.raw_config.get(marker) is not None for marker in OTHERS):
        return False
    with suppress(CheckpointError):
        return any(info.dtype == "I8" for info in context.tensors.values())
    return False


def open_int8(context: Context) -> Int8Source:
    """Open a folder. Raises CheckpointError where manifest, tensors and scales do not agree."""
    if context.folder is None or context.config is None:
        raise CheckpointError("the int8 format needs a checkpoint folder")
    where = shown_path(context.folder)
    files = CheckpointFiles.open(context)
    try:
        stored = {name for name, info in files.infos.items() if info.dtype == "I8"}
        declared = declared_tensors(context, where)
        faults = disagreements(stored, stored if declared is None else declared)
        faults += [fault for name in sorted(stored) for fault in tensor_faults(files, context.config, name)]
        if faults:
            raise summarise("faults of int8 tensors; quantise the checkpoint again", faults, where)
        if not stored:
            raise CheckpointError(f"{where} has no int8 tensors; open it with --format bf16")
        return Int8Source(files, frozenset(stored))
    except BaseException:
        files.close()
        raise


def declared_tensors(context: Context, where: str) -> set[str] | None:
    """The names in the manifest, None without one. Raises CheckpointError for one that is not ours."""
    entry = context.raw_config.get(KEY)
    if entry is None:
        return None
    keys = {"name": NAME, "version": VERSION}
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in keys.items()):
        raise CheckpointError(f"{where}/config.json: {KEY} is {shown(entry)}; known is {NAME} in version {VERSION}")
    names = entry.get("tensors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{where}/config.json: {KEY}.tensors is {shown(names)}; it must list tensor names")
    return set(names)


def disagreements(stored: set[str], declared: set[str]) -> list[str]:
    """Where the manifest and the files differ."""
    faults = [f"{shown(name)} is named in config.json ({KEY}) and not stored as I8" for name in declared - stored]
    faults += [f"{shown(name)} is stored as I8 and not named in config.json ({KEY})" for name in stored - declared]
    return sorted(faults)


def tensor_faults(files: CheckpointFiles, config: GemmaConfig, name: str) -> list[str]:
    """What is wrong with one int8 tensor and its scale."""
    shape, scale = files.infos[name].shape, files.infos.get(name + SCALE)
    if not quantisable(config, name, shape):
        return [f"{shown(name)} is I8, which this format does not quantise"]
    if scale is None:
        return [f"{shown(name + SCALE)} is missing"]
    if scale.dtype != "F32" or scale.shape != shape[:-1]:
        stands = f"{scale.dtype} {list(scale.shape)}"
        return [f"{shown(name + SCALE)} is {stands}, F32 {list(shape[:-1])} belongs to {shown(name)}"]
    values = files.array(name + SCALE).reshape(-1)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if wrong.size:
        return [f"{shown(name + SCALE)} is {values[wrong[0]]} in row {wrong[0]}; scales are finite and above 0"]
    return []


# ---------------------------------------------------------------------------------------------------- writing


def quantise_rows(rows: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """fp32 rows ``[..., in]`` as int8 of the same shape and fp32 scales ``[...]``: the largest of a row becomes 127.

    A row of zeros gets scale 1. Raises CheckpointError for weights that are not finite.
    """
    largest = np.abs(rows).max(-1)
    if not np.isfinite(largest).all():
        raise CheckpointError(f"tensor {shown(name)} holds NaN or infinite weights, which cannot be quantised")
    scale = np.where(largest > 0, np.maximum(largest / LARGEST, np.finfo(np.float32).tiny), 1).astype(np.float32)
    numbers = rows / scale[..., None]
    np.rint(numbers, out=numbers)
    return np.clip(numbers, -LARGEST, LARGEST).astype(np.int8), scale


def save_int8(
    tensors: Iterable[tuple[str, Matrix | ExpertStack | Tensor]],
    folder: Path,
    context: Context,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors, matrices of the text model as int8; those that are int8 already as they are.

    The manifest goes into config.json, which the core completes. Raises CheckpointError for weights that cannot be
    quantised, and where the disk is full.
    """
    assert context.config is not None
    waiting: dict[str, Any] = dict(tensors)
    quantised = {n for n, value in waiting.items() if quantisable(context.config, n, value.shape)}
    plan = [planned for name, value in waiting.items() for planned in plan_of(name, value, name in quantised)]
    scales: dict[str, np.ndarray] = {}

    def data(planned: Planned) -> Iterator[bytes | memoryview]:
        name = planned.name.removesuffix(SCALE)
        if planned.name.endswith(SCALE) and name in quantised:
            if name not in scales:
                # small tensors that do not fill whole lines come after all others, in any order among themselves
                scales[name] = np.concatenate([scale for _, scale in encoded(name, waiting[name])])
            yield np.ascontiguousarray(scales.pop(name)).data.cast("B")
        elif planned.name in quantised:
            found = []
            for numbers, scale in encoded(planned.name, waiting[planned.name]):
                found.append(scale)
                yield np.ascontiguousarray(numbers).data.cast("B")
            scales[planned.name] = np.concatenate(found)
        else:
            yield host_bytes(waiting.pop(planned.name))

    write_shards(folder, plan, data, max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(manifest(quantised)), encoding="utf-8")


def plan_of(name: str, value: Any, quantised: bool) -> list[Planned]:
    """What is written for one tensor."""
    shape = tuple(int(size) for size in value.shape)
    if quantised:
        return [Planned(name, "I8", shape), Planned(name + SCALE, "F32", shape[:-1])]
    from gemma4_core.checkpoint.upload import NAMES

    if NAMES.get(value.dtype) not in STORED:
        raise CheckpointError(f"tensor {shown(name)} has dtype {value.dtype}; weights are {', '.join(STORED)}")
    return [Planned(name, NAMES[value.dtype], shape)]


def encoded(name: str, value: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """int8 numbers and scales of a weight, a block of its first axis at a time."""
    from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack

    if isinstance(value, Int8Matrix | Int8Stack):
        yield value.tensor.numpy(), value.scale.numpy()
        return
    for rows in value.blocks() if isinstance(value, HostWeight) else tensor_blocks(value):
        yield quantise_rows(rows, name)


def tensor_blocks(value: Any) -> Iterator[np.ndarray]:
    """fp32 values of a tensor or matrix on a device, a block of its first axis at a time."""
    from gemma4_core.checkpoint.convert import float32_values

    tensor = (value.dense() if hasattr(value, "dense") else value).contiguous().realize()
    bits, stored = host_bits(tensor)
    step = max(1, BLOCK // math.prod(bits.shape[1:]))
    for first in range(0, bits.shape[0], step):
        yield float32_values(bits[first : first + step], stored)


def host_bits(tensor: Tensor) -> tuple[np.ndarray, str]:
    """A tensor's stored bits in its shape, with the file format's name of their type; not copied on a CPU."""
    from gemma4_core.checkpoint.upload import NAMES

    stored = NAMES[tensor.dtype]
    return np.frombuffer(host_bytes(tensor), STORED[stored]).reshape([int(size) for size in tensor.shape]), stored


def host_bytes(value: Any) -> memoryview:
    """The bytes of a tensor or matrix in host memory."""
    tensor = value.dense() if hasattr(value, "dense") else value
    buffer = tensor.contiguous().realize().uop.buffer.ensure_allocated()
    view: memoryview = buffer.as_memoryview(allow_zero_copy=True)
    return view


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    """Row-wise int8."""
    summary = "matrices as row-wise int8 with fp32 scales, computed in place"
    return [CheckpointFormat(NAME, summary, open_int8, save_int8, matches, priority=1)]
