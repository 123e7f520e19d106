"""What every description has: the checkpoint that ``matches`` looks at, and command-line options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint as its header declares it."""

    dtype: str
    """The safetensors name of the *logical* dtype: BF16, F16, F32, I8, …"""
    shape: tuple[int, ...]
    nbytes: int
    """Bytes that it takes in the file, scales and the like included."""
    rounding: float = 0.0
    """The most by which quantising moved a number, as a share of the largest of its row; 0 for ordinary numbers."""

    @property
    def quantized(self) -> bool:
        """Whether it is stored with fewer bits than the model computes with."""
        return self.rounding > 0


class Headers(Protocol):
    """The headers of a folder's safetensors files, read and validated."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor by name."""


@dataclass(frozen=True)
class SideFile:
    """A small file that lies inside a checkpoint's single file, such as the tokenizer of a GGUF. Readers take it in
    place of a path."""

    inside: Path
    """The checkpoint's file."""
    name: str
    """What the file is called in a checkpoint folder, such as ``tokenizer.json``."""
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.inside} ({self.name})"


FORMAT_KEY = "gemma4_format"
"""Key of config.json under which the core writes a format's name and what its ``save`` returned."""


@dataclass(frozen=True)
class Context:
    """What ``matches`` and the factories see of a checkpoint: a folder, or a single file that a format opens.

    All fields are None or empty without a checkpoint.
    """

    folder: Path | None = None
    """None for a single file."""
    config: GemmaConfig | None = None
    """The parsed config."""
    raw_config: Mapping[str, Any] = field(default_factory=dict)
    """config.json as read, keys that the core does not know included."""
    path: Path | None = None
    """The folder, or the single file."""
    side_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What a format brings in place of files of the folder, by their names there: tokenizer.json,
    chat_template.jinja, generation_config.json, …"""
    tokenizer_source: Any = field(default=None, repr=False)
    """What a format brings for a tokenizer backend of its own package, such as vocabulary and merges of a GGUF."""
    read_headers: Callable[[Path], Headers] | None = field(default=None, repr=False, compare=False)
    """Reads the headers of a folder's safetensors files; given by whoever opens the checkpoint."""

    def __post_init__(self) -> None:
        if self.path is None:
            object.__setattr__(self, "path", self.folder)

    @cached_property
    def headers(self) -> Headers | None:
        """The folder's safetensors headers, read once; None for a single file. Raises CheckpointError where files are
        absent or damaged."""
        if self.folder is None or self.read_headers is None:
            return None
        return self.read_headers(self.folder)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the folder's safetensors files by name; empty where there are no such files, or for a single
        file. Raises CheckpointError for damaged files."""
        return self.headers.tensors if self.headers is not None else {}

    @property
    def manifest(self) -> Any:
        """What config.json says of the format that wrote the weights: an object with ``name``, and with what the format
        added. None where it says nothing; not checked."""
        return self.raw_config.get(FORMAT_KEY)

    def file(self, name: str) -> Path | SideFile | None:
        """A file directly in the folder, or one that a format brings in its place; None where it is absent. What else
        has the name, such as a pipe or a link to nothing, is found out where it is read."""
        if name in self.side_files and self.path is not None:
            return SideFile(self.path, name, self.side_files[name])
        path = self.folder / name if self.folder else None
        return path if path is not None and os.path.lexists(path) else None


Matches = Callable[[Context], bool]


def always(context: Context) -> bool:
    """The default of ``matches``."""
    return True


@dataclass(frozen=True)
class Option:
    """A command-line option that a plugin adds to ``generate``, ``chat`` (and ``train`` for transforms).

    The parsed value reaches the plugin under ``keyword`` (the flag without dashes, ``-`` as ``_``).
    """

    flag: str
    help: str
    type: type = str
    multiple: bool = False
    default: Any = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    """The values that it takes, where they are few; another one is a usage error."""
    training: bool = False
    """Whether ``train`` alone takes it."""

    @property
    def keyword(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")
