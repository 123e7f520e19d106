"""Checkpoint format ``npz``: weights in one NumPy archive, as ``numpy.savez`` writes it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core import CheckpointError, CheckpointFormat, Context, TensorInfo, hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core import DenseMatrix, DenseStack, ExpertStack, Matrix

FILE = "model.npz"
DTYPES = {"float32": "F32", "float16": "F16"}


class NpzSource:
    """An open archive: the headers of its members are read, their data is not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
            members = [name for name in self.archive.namelist() if name.endswith(".npy")]
            self.infos: dict[str, TensorInfo] = {name[: -len(".npy")]: self._info(name) for name in members}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: is no NumPy archive of plain arrays: {str(error)[:200]}") from error

    def _info(self, member: str) -> TensorInfo:
        with self.archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        if str(dtype) not in DTYPES or fortran:
            raise CheckpointError(f"{self.path}: {member} is {dtype}; float32 or float16 in C order is expected")
        return TensorInfo(DTYPES[str(dtype)], shape, self.archive.getinfo(member).file_size)

    def array(self, name: str) -> np.ndarray:
        if name not in self.infos:
            raise CheckpointError(f"{self.path}: holds no tensor {name}")
        try:
            with self.archive.open(f"{name}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read: {str(error)[:200]}") from error

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        from tinygrad import Tensor

        return Tensor(self.array(name), device=device).cast(dtype).contiguous().realize()

    def matrix(self, name: str, device: str, dtype: Any) -> DenseMatrix:
        from gemma4_core import DenseMatrix

        return DenseMatrix(self.tensor(name, device, dtype))

    def stack(self, name: str, device: str, dtype: Any) -> DenseStack:
        from gemma4_core import DenseStack

        return DenseStack(self.tensor(name, device, dtype))

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        # a zip member cannot be read in pieces, so the table is held either way
        table = self.array(name)
        return lambda ids: table[ids].astype(np.float32)

    def close(self) -> None:
        self.archive.close()


def open_npz(context: Context) -> NpzSource:
    path = context.file(FILE)
    if path is None:
        raise CheckpointError(f"{context.folder}: has no {FILE}")
    return NpzSource(path)


def save_npz(tensors: Iterable[tuple[str, Matrix | ExpertStack | Tensor]], folder: Path, context: Context) -> None:
    """Write tensors as float32, one at a time."""
    from tinygrad import Tensor

    with zipfile.ZipFile(folder / FILE, "w", allowZip64=True) as archive:
        for name, value in tensors:
            tensor = value if isinstance(value, Tensor) else value.dense()
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, tensor.float().numpy(), allow_pickle=False)


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    return [
        CheckpointFormat(
            name="npz",
            summary="weights in one NumPy archive, model.npz",
            open=open_npz,
            save=save_npz,
            matches=lambda context: context.file(FILE) is not None,
        )
    ]
