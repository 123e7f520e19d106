"""The ``int8`` checkpoint format: matrices as symmetric row-wise int8 with fp32 scales, everything else as it was.

A quantised matrix lies under its own name as I8 ``[..., out, in]`` beside ``<name>_scale`` F32 ``[..., out]``: a weight
is its number times the scale of its row. config.json keeps ``dtype``, the type that the model computes in, and names
the quantised tensors under ``gemma4_format``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.opening import MARKERS
from gemma4_core.checkpoint.roles import Roles, quantizable
from gemma4_core.checkpoint.saving import Encoded, save_safetensors
from gemma4_core.checkpoint.source import FileSource, RowSource
from gemma4_core.contracts import FORMAT_KEY, CheckpointFormat, Context, TensorInfo, WeightBlocks
from gemma4_core.errors import CheckpointError, summarise
from gemma4_core.formatting import shown, shown_path
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix

NAME, VERSION = "int8", 1
SCALE = "_scale"
LARGEST = 127
ROUNDING = 0.501 / LARGEST
"""Half a step, and a little for the rounding of scales."""


# ---------------------------------------------------------------------------------------------------- reading


class Int8Source(FileSource):
    """An open folder. Headers, manifest and scales are checked."""

    def __init__(self, files: CheckpointFiles, quantised: frozenset[str]) -> None:
        super().__init__(files)
        self.quantised = quantised
        stored = files.infos
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(info.dtype, info.shape, info.nbytes + stored[name + SCALE].nbytes, ROUNDING)
            if name in quantised else info
            for name, info in stored.items() if not (name.endswith(SCALE) and name[: -len(SCALE)] in quantised)
        }

    def read(self, name: str, rows: np.ndarray | None) -> np.ndarray:
        """fp32 values of rows, or of the whole."""
        if name not in self.quantised:
            return super().read(name, rows)
        return self.row_reader(name, in_memory=False)(np.arange(self.infos[name].shape[0]) if rows is None else rows)

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A plain tensor on a device; a quantised one becomes dense."""
        return (RowSource if name in self.quantised else FileSource).tensor(self, name, device, dtype)

    def matrix(self, name: str, device: str, dtype: Any) -> Matrix:
        """The matrix ``[out, in]``, int8 where it is stored so."""
        from gemma4_plugins.layouts.int8 import Int8Matrix

        if name not in self.quantised:
            return super().matrix(name, device, dtype)
        return Int8Matrix(*self._parts(name, device), dtype)

    def stack(self, name: str, device: str, dtype: Any) -> ExpertStack:
        """The experts ``[experts, out, in]``, int8 where they are stored so."""
        from gemma4_plugins.layouts.int8 import Int8Stack

        if name not in self.quantised:
            return super().stack(name, device, dtype)
        return Int8Stack(*self._parts(name, device), dtype)

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]``. In memory rows stay int8."""
        if name not in self.quantised:
            return super().row_reader(name, in_memory)
        mapped = np.frombuffer(self.files.bytes(name), np.int8).reshape(self.infos[name].shape)
        numbers, scale = np.array(mapped) if in_memory else mapped, self.files.array(name + SCALE)

        def rows(ids: np.ndarray) -> np.ndarray:
            picked = numbers[np.asarray(ids)].astype(np.float32)
            picked *= scale[np.asarray(ids)][..., None]
            return picked

        return rows

    def _parts(self, name: str, device: str) -> tuple[Tensor, Tensor]:
        from tinygrad import dtypes

        return self.files.tensor(name, device, dtypes.int8), self.files.tensor(name + SCALE, device, dtypes.float32)


def matches(context: Context) -> bool:
    """Whether config.json has our manifest, or, without any, the files hold int8 tensors."""
    if context.folder is None:
        return False
    entry = context.manifest
    if entry is not None:
        named = entry.get("name") if isinstance(entry, dict) else None
        return not isinstance(named, str) or named == NAME
    if any(context.raw_config.get(marker) is not None for marker in MARKERS):
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
        roles = Roles(context.config)
        faults += [fault for name in sorted(stored) for fault in tensor_faults(files, roles, name)]
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
    entry = context.manifest
    if entry is None:
        return None
    keys = {"name": NAME, "version": VERSION}
    if not isinstance(entry, dict) or any(entry.get(key) != value for key, value in keys.items()):
        raise CheckpointError(f"{where}/config.json: {FORMAT_KEY} is {shown(entry)}; known is {NAME} in version "
                              f"{VERSION}")
    names = entry.get("tensors")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{where}/config.json: {FORMAT_KEY}.tensors is {shown(names)}; it must list tensor names")
    return set(names)


def disagreements(stored: set[str], declared: set[str]) -> list[str]:
    """Where the manifest and the files differ."""
    key = FORMAT_KEY
    faults = [f"{shown(name)} is named in config.json ({key}) and not stored as I8" for name in declared - stored]
    faults += [f"{shown(name)} is stored as I8 and not named in config.json ({key})" for name in stored - declared]
    return sorted(faults)


def tensor_faults(files: CheckpointFiles, roles: Roles, name: str) -> list[str]:
    """What is wrong with one int8 tensor and its scale."""
    shape, scale = files.infos[name].shape, files.infos.get(name + SCALE)
    if not quantizable(name, roles.of(name, shape)):
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


def save_int8(weights: Sequence[WeightBlocks], folder: Path, context: Context) -> dict[str, Any]:
    """Write weights, those worth quantising as int8; returns the manifest. Raises CheckpointError for weights that are
    not finite."""
    save_safetensors(weights, folder, encode)
    quantised = sorted(weight.name for weight in weights if quantizable(weight.name, weight.role))
    return {"version": VERSION, "tensors": quantised}


def encode(weight: WeightBlocks) -> Encoded | None:
    """Numbers and scales of a weight; None for one that stays as it is."""
    if not quantizable(weight.name, weight.role):
        return None
    parts = {"": ("I8", weight.shape), SCALE: ("F32", weight.shape[:-1])}
    return Encoded(parts, lambda: encoded_rows(weight))


def encoded_rows(weight: WeightBlocks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """int8 numbers and scales, a block of rows at a time; those of what is int8 already as they are."""
    from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack

    held = weight.held
    if isinstance(held, Int8Matrix | Int8Stack):
        yield held.tensor.numpy(), held.scale.numpy()
        return
    for rows in weight.blocks():
        yield quantise_rows(rows, weight.name)


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    """Row-wise int8."""
    summary = "matrices as row-wise int8 with fp32 scales, computed in place"
    return [CheckpointFormat(NAME, summary, open_int8, save_int8, matches, priority=1, quantizes=True,
                             default_for=("quantize",))]
