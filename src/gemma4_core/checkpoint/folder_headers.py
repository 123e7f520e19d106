"""The headers of a checkpoint folder: one safetensors file, or several with an index. Read once for each opening."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from gemma4_core.checkpoint.header import Entry, Header
from gemma4_core.checkpoint.shard import Shard, Stamp, stamp_of
from gemma4_core.config.files import read_json
from gemma4_core.contracts import TensorInfo
from gemma4_core.errors import CheckpointError, summarise
from gemma4_core.formatting import shown, shown_path

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


class FolderHeaders:
    """Headers of a folder's safetensors files, checked against each other and against the index.

    Raises CheckpointError for a tensor in two files and for an index that does not fit the files.
    """

    def __init__(
        self, folder: Path, files: Sequence[tuple[Path, Header, Stamp]], index: Mapping[str, str] | None
    ) -> None:
        self.folder, self.files = folder, list(files)
        self.places: dict[str, tuple[int, Entry]] = {}
        """Number of the file and place in it, by tensor name."""
        self.metadata: dict[str, str] = {}
        """Free text of the files' headers, merged."""
        for number, (path, header, _) in enumerate(self.files):
            self.metadata |= header.metadata
            for name, entry in header.tensors.items():
                if name in self.places:
                    both = f"{self.files[self.places[name][0]][0].name} and {path.name}"
                    raise CheckpointError(f"{shown_path(folder)}: tensor {shown(name)} is in {both}; remove one")
                self.places[name] = (number, entry)
        if index is not None:
            self._check_index(index)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(entry.dtype, entry.shape, entry.nbytes) for name, (_, entry) in self.places.items()
        }

    def fresh(self) -> bool:
        """Whether the files are still the ones that were read: a training run may have replaced them."""
        try:
            return all(stamp_of(os.stat(path)) == stamp for path, _, stamp in self.files)
        except OSError:
            return False

    def _check_index(self, index: Mapping[str, str]) -> None:
        absent = [
            f"{shown(name)} is not in {shown(file)}"
            for name, file in index.items()
            if name not in self.places or self.files[self.places[name][0]][0] != self.folder / file
        ]
        if absent:
            raise summarise("tensors of the index are not in their file", absent, shown_path(self.folder / INDEX_FILE))


def read_headers(folder: Path | str) -> FolderHeaders:
    """The headers of ``model.safetensors``, else of the files of its index; none where a folder has neither.

    Raises CheckpointError naming the file, and the tensor where there is one.
    """
    folder = Path(folder)
    if os.path.lexists(folder / SINGLE_FILE):
        return FolderHeaders(folder, [header_of(folder / SINGLE_FILE)], None)
    if not os.path.lexists(folder / INDEX_FILE):
        return FolderHeaders(folder, [], None)
    index = read_index(folder)
    files = [header_of(path) for path in dict.fromkeys(folder / name for name in index.values())]
    return FolderHeaders(folder, files, index)


def header_of(path: Path) -> tuple[Path, Header, Stamp]:
    """A file's header with the stamp that tells whether it is still the same file."""
    shard = Shard(path)
    shard.file.close()
    return path, shard.header, shard.stamp


def read_index(folder: Path) -> dict[str, str]:
    """File by tensor name from a folder's index. Raises CheckpointError, also if a name leads out of the folder."""
    path = folder / INDEX_FILE
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
    """Whether a file name of an index leads out of the folder. Only the name counts: the file may be a link, as in a
    snapshot of the Hugging Face cache, and the owner decides where that leads."""
    if not file or "\0" in file or PureWindowsPath(file).drive or "\\" in file or file.startswith("/"):
        return True
    return ".." in PurePosixPath(file).parts


def what_else(folder: Path) -> str:
    """What to do about a folder without weights that we can read, judged by the files that are there."""
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
