"""Checkpoint formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemma4_core.contracts.context import Context, Matches, always

if TYPE_CHECKING:
    import numpy as np
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a checkpoint as its header declares it."""

    dtype: str
    """The safetensors name of the *logical* dtype: BF16, F16, F32, I8, …"""
    shape: tuple[int, ...]
    nbytes: int
    """Bytes that it takes in the file, scales and the like included."""


class WeightSource(Protocol):
    """An open checkpoint folder: headers are read and validated, no tensor data yet."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every logical tensor by its full name. Parts such as scales are not listed on their own."""

    def tensor(self, name: str, device: str, dtype: Any) -> Tensor:
        """A realized plain tensor on a device in the wanted dtype (tinygrad dtype)."""

    def matrix(self, name: str, device: str, dtype: Any) -> Matrix:
        """The matrix ``[out, in]`` under this name, held in the format's storage type, computing in ``dtype``."""

    def stack(self, name: str, device: str, dtype: Any) -> ExpertStack:
        """The stack of expert matrices ``[experts, out, in]`` under this name."""

    def row_reader(self, name: str, in_memory: bool) -> Callable[[np.ndarray], np.ndarray]:
        """A function from ids ``[...]`` to fp32 rows ``[..., in]`` of a matrix kept off the device: read from the
        file as needed, or held in host memory."""

    def close(self) -> None:
        """Release file handles; tensors handed out stay valid."""


@dataclass(frozen=True)
class CheckpointFormat:
    """A way to store weights. Give ``matches`` that looks at the folder's manifest: config.json and file headers."""

    name: str
    summary: str
    open: Callable[[Context], WeightSource]
    """Open a folder lazily. Raises CheckpointError for damaged files, naming file and tensor."""
    save: Callable[[Iterable[tuple[str, Matrix | ExpertStack | Tensor]], Path, Context], None] | None = None
    """Write tensors under their full names into an existing empty folder, as ``*.safetensors`` and what else the
    format's manifest needs; the core writes config and tokenizer files and swaps the folder in."""
    matches: Matches = always
    priority: int = 0
