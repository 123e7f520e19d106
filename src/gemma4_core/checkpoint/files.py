"""The weights of an open checkpoint folder, by tensor name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.convert import STORED
from gemma4_core.checkpoint.folder_headers import (
    INDEX_FILE,
    SINGLE_FILE,
    FolderHeaders,
    read_headers,
    what_else,
)
from gemma4_core.checkpoint.header import Entry
from gemma4_core.checkpoint.shard import Shard, StoredRows
from gemma4_core.contracts import Context, TensorInfo
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown, shown_path

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.checkpoint.upload import Upload


class CheckpointFiles:
    """Tensors of a folder by name. Data is read when asked for; ``infos`` comes from validated headers."""

    def __init__(self, headers: FolderHeaders) -> None:
        self.folder = headers.folder
        self.shards: list[Shard] = []
        self.header_metadata = headers.metadata
        """Free text of the files' headers, merged."""
        self.infos: Mapping[str, TensorInfo] = headers.tensors
        self._uploads: dict[str, Upload | None] = {}
        try:
            for path, header, stamp in headers.files:
                self.shards.append(Shard(path, (header, stamp)))
                if self.shards[-1].header is not header:
                    raise CheckpointError(f"{shown_path(path)} was replaced while it was opened; open it again")
        except BaseException:
            for shard in self.shards:
                shard.file.close()
            raise
        self._places = {name: (self.shards[number], entry) for name, (number, entry) in headers.places.items()}

    @classmethod
    def open(cls, place: Path | str | Context) -> CheckpointFiles:
        """Open a folder's weights: ``model.safetensors``, else the files of its index. The headers that a context has
        read are not read again.

        Raises CheckpointError naming the file, and the tensor where there is one.
        """
        if not isinstance(place, Context):
            headers = read_headers(place)
        elif place.folder is None:
            raise CheckpointError(f"{shown_path(place.path or 'checkpoint')} is a file; a folder with *.safetensors "
                                  f"files is needed")
        else:
            known = place.headers
            fresh = isinstance(known, FolderHeaders) and known.fresh()
            headers = known if isinstance(known, FolderHeaders) and fresh else read_headers(place.folder)
        if not headers.files:
            folder = headers.folder
            raise CheckpointError(f"{shown_path(folder)} has neither {SINGLE_FILE} nor {INDEX_FILE}; "
                                  f"{what_else(folder)}")
        return cls(headers)

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
