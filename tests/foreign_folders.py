"""Checkpoint folders as other tools write them: the reference folders with tensors renamed, added, retyped or gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_core.checkpoint.convert import STORED, convert

DATA = Path(__file__).parent / "reference" / "data"


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it: bits in its shape, and the file format's name of their type."""

    bits: np.ndarray
    dtype: str

    def to(self, dtype: str) -> Stored:
        """The same numbers in another float type."""
        values = convert(np.ascontiguousarray(self.bits), self.dtype, dtype)
        return Stored(values.reshape(self.bits.shape), dtype)


Tensors = dict[str, Stored]
Change = Callable[[Tensors], Mapping[str, Stored]]
KINDS = STORED | {"I8": np.int8, "I64": np.int64, "BOOL": np.bool_}


def read(folder: Path) -> Tensors:
    """Every tensor of a folder's only file."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, found = json.loads(data[8 : 8 + length]), {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            bits = np.frombuffer(data[start:end], KINDS[entry["dtype"]]).reshape(entry["shape"])
            found[name] = Stored(bits, entry["dtype"])
    return found


def write_file(path: Path, tensors: Mapping[str, Stored]) -> None:
    """A safetensors file."""
    header, position = {}, 0
    for name, stored in tensors.items():
        span = [position, position + stored.bits.nbytes]
        header[name] = {"dtype": stored.dtype, "shape": list(stored.bits.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.bits.tobytes() for t in tensors.values()))


def write(folder: Path, tensors: Mapping[str, Stored], shards: int = 1) -> None:
    """A folder's weights: one file, or several with an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return
    weight_map = {}
    for number in range(shards):
        part = dict(list(tensors.items())[number::shards])
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_file(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def changed(
    source: Path, target: Path, change: Change = dict, config: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """A copy of a folder with other tensors, and with keys of config.json set (None takes one out)."""
    shutil.copytree(source, target)
    write(target, change(read(source)), shards)
    data = json.loads((target / "config.json").read_text())
    for key, value in (config or {}).items():
        *outer, last = key.split(".")
        inner = data
        for part in outer:
            inner = inner[part]
        inner[last] = value
        if value is None:
            del inner[last]
    (target / "config.json").write_text(json.dumps(data))
    return target


def retyped(tensors: Tensors, dtype: str, *names: str) -> Tensors:
    """Some tensors, by the end of their name, or all, in another type."""
    return {n: t.to(dtype) if not names or n.endswith(names) else t for n, t in tensors.items()}


def other(stored: Stored) -> Stored:
    """A tensor with one number changed."""
    bits = stored.bits.copy()
    bits[-1, -1] = bits[-1, -1] * 3 + 1
    return replace(stored, bits=bits)
