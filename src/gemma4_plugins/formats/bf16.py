"""The ``bf16`` checkpoint format: ordinary safetensors files of bfloat16, fp16 or fp32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.checkpoint.convert import STORED, convert
from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.opening import MARKERS
from gemma4_core.checkpoint.rows import HostWeight
from gemma4_core.checkpoint.writer import MAX_SHARD_BYTES, Planned, write_shards
from gemma4_core.contracts import CheckpointFormat, Context, TensorInfo
from gemma4_core.errors import CheckpointError, summarise
from gemma4_core.formatting import shown, shown_path
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    import numpy as np
    from tinygrad import Tensor

    from gemma4_core.weights import DenseMatrix, DenseStack, ExpertStack, Matrix


class PlainSource:
    """Weights as they are stored, converted to the run-time dtype on the way."""

    def __init__(self, files: CheckpointFiles) -> None:
        self.files = files

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the files."""
        return self.files.infos

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A realized tensor on a device."""
        return self.files.tensor(name, device, dtype)

    def matrix(self, name: str, device: str, dtype: Any) -> DenseMatrix:
        """The matrix ``[out, in]`` as an ordinary tensor."""
        from gemma4_core.weights import DenseMatrix

        return DenseMatrix(self.files.tensor(name, device, dtype))

    def stack(self, name: str, device: str, dtype: Any) -> DenseStack:
        """The experts ``[experts, out, in]`` as an ordinary tensor."""
        from gemma4_core.weights import DenseStack

        return DenseStack(self.files.tensor(name, device, dtype))

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]``."""
        return self.files.rows(name, in_memory)

    def close(self) -> None:
        """Close the files."""
        self.files.close()


def matches(context: Context) -> bool:
    """Whether the folder's safetensors files hold plain weights. Damaged files count too: opening them says what is
    wrong."""
    if context.folder is None or any(context.raw_config.get(marker) is not None for marker in MARKERS):
        return False
    try:
        tensors = context.tensors
    except CheckpointError:
        return True
    return bool(tensors) and all(info.dtype != "I8" for info in tensors.values())


def open_plain(context: Context) -> PlainSource:
    """Open a folder. Raises CheckpointError for damaged files, and for weights that are not plain numbers."""
    if context.folder is None:
        raise CheckpointError("the bf16 format needs a checkpoint folder")
    where = shown_path(context.folder)
    for marker in MARKERS:
        if context.raw_config.get(marker) is not None:
            value = shown(context.raw_config[marker])
            reason = "the bf16 format reads plain weights only; use the plugin of that format"
            raise CheckpointError(f"{where}/config.json: {marker} is {value}; {reason}")
    files = CheckpointFiles.open(context)
    packed = [f"{shown(name)} is {info.dtype}" for name, info in files.infos.items() if info.dtype == "I8"]
    if packed:
        files.close()
        raise summarise("tensors are packed, and the bf16 format reads plain weights only", packed, where)
    return PlainSource(files)


def save_plain(
    tensors: Iterable[tuple[str, Matrix | ExpertStack | Tensor]],
    folder: Path,
    context: Context,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors under their names in their run-time dtype; matrices of other formats become dense one by one.

    Raises CheckpointError for a dtype that plain checkpoints do not have, and where the disk is full.
    """
    waiting = dict(tensors)
    plan = [Planned(name, dtype_name(name, value), shape_of(value)) for name, value in waiting.items()]
    write_shards(folder, plan, lambda planned: host_pieces(waiting.pop(planned.name)), max_shard_bytes)


def dtype_name(name: str, value: Matrix | ExpertStack | Tensor) -> str:
    """The file format's name of a tensor's run-time dtype."""
    from gemma4_core.checkpoint.upload import NAMES

    if value.dtype not in NAMES:
        raise CheckpointError(
            f"tensor {shown(name)} has dtype {value.dtype}; plain checkpoints hold {', '.join(STORED)}"
        )
    return NAMES[value.dtype]


def shape_of(value: Matrix | ExpertStack | Tensor) -> tuple[int, ...]:
    """A shape of plain ints."""
    return tuple(int(size) for size in value.shape)


def host_pieces(value: Matrix | ExpertStack | Tensor | HostWeight) -> Iterator[memoryview]:
    """A weight's bytes in host memory: of one that stays on the host a block at a time, else in one piece."""
    if not isinstance(value, HostWeight):
        yield host_bytes(value)
        return
    from gemma4_core.checkpoint.upload import NAMES

    for rows in value.blocks():
        yield convert(rows.reshape(-1), "F32", NAMES[value.dtype]).data.cast("B")


def host_bytes(value: Matrix | ExpertStack | Tensor) -> memoryview:
    """A tensor's bytes in host memory; on a CPU device they are not copied."""
    from tinygrad import Tensor

    tensor = value if isinstance(value, Tensor) else value.dense()
    buffer = tensor.contiguous().realize().uop.buffer.ensure_allocated()
    view: memoryview = buffer.as_memoryview(allow_zero_copy=True)
    return view


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    """The format of the released checkpoints."""
    summary = "plain safetensors weights in bfloat16, fp16 or fp32, one file or shards"
    return [CheckpointFormat("bf16", summary, open_plain, save_plain, matches)]
