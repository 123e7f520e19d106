"""Checkpoint format ``npz``: weights in one NumPy archive, as ``numpy.savez`` writes it."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma4_core import CheckpointError, CheckpointFormat, Context, RowSource, TensorInfo, WeightBlocks, hookimpl

FILE = "model.npz"
DTYPES = {"float32": "F32", "float16": "F16"}


class NpzSource(RowSource):
    """An open archive: the headers of its members are read, their data is not."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.last = path or Path(FILE), ("", np.empty(0))
        try:
            self.archive = zipfile.ZipFile(self.path)
            names = [name.removesuffix(".npy") for name in self.archive.namelist() if name.endswith(".npy")]
            self.infos = {name: self.info(name) for name in names}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path}: not a NumPy archive of plain arrays: {str(error)[:200]}") from error

    def info(self, name: str) -> TensorInfo:
        with self.archive.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        if str(dtype) not in DTYPES or fortran:
            raise CheckpointError(f"{self.path}: {name} is {dtype}; float32 or float16 in C order is expected")
        return TensorInfo(DTYPES[str(dtype)], shape, self.archive.getinfo(f"{name}.npy").file_size)

    def read(self, name: str, rows: np.ndarray | None) -> np.ndarray:
        if self.last[0] != name:  # a member of a zip cannot be read in pieces
            try:
                with self.archive.open(f"{name}.npy") as file:
                    self.last = (name, np.lib.format.read_array(file, allow_pickle=False))
            except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise CheckpointError(f"{self.path}: {name} cannot be read: {str(error)[:200]}") from error
        return (self.last[1] if rows is None else self.last[1][rows]).astype(np.float32)


def save(weights: Sequence[WeightBlocks], folder: Path, context: Context) -> None:
    with zipfile.ZipFile(folder / FILE, "w", allowZip64=True) as archive:
        for weight in weights:
            with archive.open(f"{weight.name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": weight.shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(rows.astype("<f4").tobytes() for rows in weight.blocks())


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    summary, there = "weights in one NumPy archive, model.npz", lambda context: context.file(FILE) is not None
    return [CheckpointFormat("npz", summary, lambda context: NpzSource(context.file(FILE)), save, there)]
