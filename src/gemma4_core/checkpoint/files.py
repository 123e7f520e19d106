"""An open checkpoint folder: one safetensors file, or several with an index."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.convert import STORED, float32_values
from gemma4_core.checkpoint.header import Entry, open_regular, read_header
from gemma4_core.config.files import read_json
from gemma4_core.contracts import TensorInfo
from gemma4_core.errors import CheckpointError, summarise
from gemma4_core.formatting import shown, shown_path

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.checkpoint.upload import Upload

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# the name is in Python's mmap from 3.12 on; Linux alone needs it
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if sys.platform == "linux" else 0


class Shard:
    """One open safetensors file. Raises CheckpointError where its header is not sound."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open_regular(path)
        try:
            self.header = read_header(self.file, path)
        except BaseException:
            self.file.close()
            raise
        self._mapping: mmap.mmap | None = None
        self.readers: weakref.WeakSet[StoredRows] = weakref.WeakSet()
        """Those that may still be asked for rows."""

    def close(self) -> None:
        """Close the file. It stays mapped for those that read on."""
        if self.readers and not self.file.closed:
            with suppress(CheckpointError):
                _ = self.mapping
        self.file.close()

    @property
    def mapping(self) -> mmap.mmap:
        """The file in memory, copy on write: a tensor on it may be updated in place, the file never is.

        It lives as long as arrays or tensors refer to it, also after ``close``.
        """
        if self._mapping is None:
            # without NORESERVE Linux refuses a private mapping larger than memory, though no page is written
            flags = mmap.MAP_PRIVATE | NORESERVE
            try:
                self._mapping = mmap.mmap(self.file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
            except (OSError, ValueError) as fault:
                raise CheckpointError(f"{shown_path(self.path)} cannot be mapped into memory: {fault}") from fault
        return self._mapping

    def read(self, start: int, into: np.ndarray) -> None:
        """Fill an array from a file position, without leaving file pages in this process's memory. Threads may read at
        once. Raises CheckpointError where the file ends early."""
        view, done = into.data.cast("B"), 0
        while done < len(view):
            try:
                count = os.preadv(self.file.fileno(), [view[done:]], start + done)
            except OSError as fault:
                raise CheckpointError(f"{shown_path(self.path)} cannot be read: {fault.strerror}") from fault
            if not count:
                raise CheckpointError(f"{shown_path(self.path)} became shorter while it was read; fetch it again")
            done += count


class StoredRows:
    """Rows of a stored float matrix as fp32, by indices ``[...]`` of its first axis.

    A run of rows is read from the file and leaves nothing in this process's memory or address space; others come from
    the mapped file, or from ``held``, the whole matrix in memory.
    """

    def __init__(self, shard: Shard, entry: Entry, held: np.ndarray | None = None) -> None:
        self.shard, self.entry, self.held = shard, entry, held
        shard.readers.add(self)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        table = self.held
        if table is None and not self.shard.file.closed and self._is_run(ids):
            return float32_values(self.run(int(ids[0]), len(ids)), self.entry.dtype)
        return float32_values((self._mapped() if table is None else table)[ids], self.entry.dtype)

    def run(self, first: int, count: int) -> np.ndarray:
        """The stored bits of ``count`` rows from ``first`` on."""
        rows, *inner = self.entry.shape
        bits = np.empty((count, *inner), STORED[self.entry.dtype])
        self.shard.read(self.entry.start + first * (self.entry.nbytes // rows), bits)
        return bits

    def _is_run(self, ids: np.ndarray) -> bool:
        if ids.ndim != 1 or len(ids) < 2 or ids[0] < 0 or ids[-1] >= self.entry.shape[0]:
            return False
        return bool((np.diff(ids) == 1).all())

    def _mapped(self) -> np.ndarray:
        bits = memoryview(self.shard.mapping)[self.entry.start : self.entry.end]
        return np.frombuffer(bits.toreadonly(), STORED[self.entry.dtype]).reshape(self.entry.shape)


class CheckpointFiles:
    """Tensors of a folder by name. Data is read when asked for; ``infos`` comes from validated headers."""

    def __init__(self, folder: Path, shards: list[Shard], index: Mapping[str, str] | None) -> None:
        self.folder, self.shards = folder, shards
        self.header_metadata: dict[str, str] = {}
        """Free text of the files' headers, merged."""
        self._places: dict[str, tuple[Shard, Entry]] = {}
        self._uploads: dict[str, Upload | None] = {}
        for shard in shards:
            self.header_metadata |= shard.header.metadata
            for name, entry in shard.header.tensors.items():
                if name in self._places:
                    both = f"{self._places[name][0].path.name} and {shard.path.name}"
                    raise CheckpointError(f"{shown_path(folder)}: tensor {shown(name)} is in {both}; remove one")
                self._places[name] = (shard, entry)
        if index is not None:
            self._check_index(index)
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(entry.dtype, entry.shape, entry.nbytes) for name, (_, entry) in self._places.items()
        }

    @classmethod
    def open(cls, folder: Path | str) -> CheckpointFiles:
        """Open a folder's weights: ``model.safetensors``, else the files of its index.

        Raises CheckpointError naming the file, and the tensor where there is one.
        """
        folder = Path(folder)
        shards: list[Shard] = []
        try:
            if os.path.lexists(folder / SINGLE_FILE):
                shards.append(Shard(folder / SINGLE_FILE))
                return cls(folder, shards, None)
            index = read_index(folder)
            shards.extend(Shard(path) for path in dict.fromkeys(folder / name for name in index.values()))
            return cls(folder, shards, index)
        except BaseException:
            for shard in shards:
                shard.file.close()
            raise

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def bytes(self, name: str) -> memoryview:
        """The stored bytes of a tensor, read-only, mapped and not copied."""
        shard, entry = self._place(name)
        return memoryview(shard.mapping)[entry.start : entry.end].toreadonly()

    def array(self, name: str) -> np.ndarray:
        """A float tensor's stored bits in its shape, read-only, mapped and not copied; bfloat16 as uint16."""
        entry = self._place(name)[1]
        return np.frombuffer(self.bytes(name), self._stored(name, entry)).reshape(entry.shape)

    def rows(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]`` of a stored float matrix ``[out, in]``.

        Args:
            name: the matrix.
            in_memory: hold a copy of it in host memory instead of reading the file as rows are asked for.
        """
        shard, entry = self._place(name)
        self._stored(name, entry)
        rows = StoredRows(shard, entry)
        if in_memory and entry.nbytes:
            rows.held = rows.run(0, entry.shape[0])
        return rows

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A realized tensor on a device in the wanted tinygrad dtype.

        On tinygrad's CPU device it lies on the mapped file where type and alignment allow; elsewhere bytes are
        copied piece by piece, so that host memory stays small. ``dtypes.int8`` takes stored int8 numbers as they are.
        Raises DeviceError where the device is full.
        """
        from gemma4_core.checkpoint.upload import NAMES, Upload, map_tensor, upload_tensor
        from gemma4_core.devices import staging_of

        shard, entry = self._place(name)
        if not (entry.dtype == NAMES[dtype] == "I8"):
            self._stored(name, entry)
        mapped = map_tensor(shard, entry, device, dtype)
        if mapped is not None:
            return mapped
        if device not in self._uploads:
            staging = staging_of(device)
            self._uploads[device] = Upload(staging) if staging is not None else None
        return upload_tensor(name, shard, entry, device, dtype, self._uploads[device])

    def close(self) -> None:
        """Close the files and free staging memory; tensors, arrays and bytes handed out stay valid."""
        from gemma4_core.checkpoint.upload import release_staging

        for shard in self.shards:
            shard.close()
        for device, upload in self._uploads.items():
            if upload is not None:
                upload.close()
            else:
                release_staging(device)
        self._uploads.clear()

    def _place(self, name: str) -> tuple[Shard, Entry]:
        if name not in self._places:
            raise CheckpointError(f"{shown_path(self.folder)} has no tensor {shown(name)}")
        return self._places[name]

    def _stored(self, name: str, entry: Entry) -> type[np.generic]:
        if entry.dtype not in STORED:
            where, known = shown_path(self.folder), ", ".join(STORED)
            raise CheckpointError(f"{where}: tensor {shown(name)} has dtype {entry.dtype}; plain weights are {known}")
        return STORED[entry.dtype]

    def _check_index(self, index: Mapping[str, str]) -> None:
        absent = [
            f"{shown(name)} is not in {shown(file)}"
            for name, file in index.items()
            if name not in self._places or self._places[name][0].path != self.folder / file
        ]
        if absent:
            raise summarise("tensors of the index are not in their file", absent, shown_path(self.folder / INDEX_FILE))


def read_index(folder: Path) -> dict[str, str]:
    """File by tensor name from a folder's index. Raises CheckpointError; no name of it leads out of the folder."""
    path = folder / INDEX_FILE
    if not os.path.lexists(path):
        raise CheckpointError(f"{shown_path(folder)} has neither {SINGLE_FILE} nor {INDEX_FILE}; {what_else(folder)}")
    where, index = shown_path(path), read_json(path, error=CheckpointError).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CheckpointError(f"{where}: weight_map is {shown(index)}; it must map tensor names to file names")
    missing = []
    for file in dict.fromkeys(index.values()):
        if escapes(file):
            raise CheckpointError(f"{where}: weight_map names {shown(file)}, which leads out of the folder")
        try:
            os.stat(folder / file)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(shown(file) + (", a link to nothing" if os.path.islink(folder / file) else ""))
        except OSError as fault:
            raise CheckpointError(f"{where}: weight_map names {shown(file)}, which cannot be opened: {fault.strerror}; "
                                  f"fetch the index again") from fault
    if missing:
        raise summarise("files of the index are missing, fetch them again", missing, where)
    return index


def escapes(file: str) -> bool:
    """Whether a file name of an index leads out of the folder. Only the name counts: what it names may be a link, as in
    a snapshot of the Hugging Face cache, and where that leads is its owner's affair."""
    if not file or "\0" in file or PureWindowsPath(file).drive or "\\" in file or file.startswith("/"):
        return True
    return ".." in PurePosixPath(file).parts


def what_else(folder: Path) -> str:
    """A next step for a folder without weights that we read, from what lies there instead."""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(entry.name for entry in folder.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".gguf", ".npz", ".msgpack", ".h5"))]
    if shards:
        return f"it has {shown(shards[0])}, whose index file is missing: fetch that too"
    if others:
        return f"it has {shown(others[0])}, which is not read: convert it to safetensors"
    return "fetch the checkpoint's weights into it"
