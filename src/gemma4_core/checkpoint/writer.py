"""Writing safetensors files as a stream: headers come from a plan, data a tensor at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemma4_core.checkpoint.atomic import NoRoom, sync_folder, sync_path
from gemma4_core.checkpoint.blocks import MAX_SHARD_BYTES
from gemma4_core.checkpoint.folder_headers import INDEX_FILE, SINGLE_FILE
from gemma4_core.checkpoint.header import ITEMSIZE
from gemma4_core.checkpoint.progress import Progress, progress
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown

LINE = 64
"""Bytes: data starts at a multiple of this, and tensors of whole lines come first, so that most of a mapped file can be
used without a copy."""


@dataclass(frozen=True)
class Planned:
    """A tensor to be written; ``dtype`` is the file format's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


Data = Callable[[Planned], Iterable[bytes | memoryview]]


def write_shards(
    folder: Path,
    plan: Sequence[Planned],
    data: Data,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    resume: Path | None = None,
) -> int:
    """Write ``model.safetensors``, or numbered shards with an index where one file would exceed ``max_shard_bytes``.

    Args:
        folder: an existing folder, as ``atomic_folder`` yields it.
        plan: every tensor, in the order in which they are spread over shards.
        data: the bytes of a planned tensor in pieces; called once for each, in the order of the file.
        max_shard_bytes: bytes of data in one file, exceeded only by a single larger tensor.
        metadata: the header's free text.
        resume: a folder on the same disk where each file waits for the others. Files that an earlier run with the
            same plan has left there are not written again.

    Returns:
        bytes of tensor data written.

    Raises:
        CheckpointError: ``data`` gives other than the planned bytes.
        OSError: the disk has too little room, or writing failed; ``atomic_folder`` turns it into one line.
    """
    total = sum(tensor.nbytes for tensor in plan)
    shards = split(plan, max_shard_bytes)
    names = [SINGLE_FILE]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    missing = {name: shard for name, shard in zip(names, shards, strict=True)
               if resume is None or not (resume / name).exists()}
    needed = sum(tensor.nbytes for shard in missing.values() for tensor in shard)
    check_room(folder, needed)
    with progress(needed, "writing", "B") as bar:
        for name, shard in missing.items():
            place = folder / name if resume is None else resume / f"{name}.partial"
            with open(place, "xb" if resume is None else "wb") as file:
                write_file(file, shard, data, metadata or {"format": "pt"}, bar)
            if resume is not None:
                sync_path(place)
                os.replace(place, resume / name)
                sync_folder(resume)
    if resume is not None:
        for name in names:
            link(resume / name, folder / name)  # it stays for another attempt
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def link(path: Path, name: Path) -> None:
    """A file under a second name, a copy where the file system has no links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def check_room(folder: Path, needed: int) -> None:
    """Raise NoRoom, an OSError, where the disk of a folder has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoom(needed, free)


def split(plan: Sequence[Planned], max_shard_bytes: int) -> list[list[Planned]]:
    """Tensors by shard: in order, a new shard where the next tensor would not fit."""
    shards: list[list[Planned]] = [[]]
    used = 0
    for tensor in plan:
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    return shards


def write_file(
    file: BinaryIO, shard: Sequence[Planned], data: Data, metadata: Mapping[str, str], bar: Progress
) -> None:
    """One file: header, then tensors of whole lines, then the small rest."""
    ordered = sorted(shard, key=lambda tensor: tensor.nbytes % LINE != 0)
    file.write(encode_header(ordered, metadata))
    for tensor in ordered:
        written = 0
        for piece in data(tensor):
            written += file.write(piece)
            bar.update(len(piece))
        if written != tensor.nbytes:
            raise CheckpointError(f"tensor {shown(tensor.name)} has {written} bytes, but {tensor.nbytes} were planned")


def encode_header(ordered: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with blanks so that the data starts at a whole line."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in ordered:
        span = [position, position + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % LINE)
    return len(text).to_bytes(8, "little") + text
