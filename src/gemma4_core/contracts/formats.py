"""Checkpoint formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemma4_core.contracts.context import Context, Matches, TensorInfo, always

if TYPE_CHECKING:
    import numpy as np
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix


class WeightSource(Protocol):
    """An open checkpoint: headers are read and validated, no tensor data yet."""

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
class CheckpointMetadata:
    """What a format's own file says beside the weights, where a checkpoint has no config.json."""

    raw_config: Mapping[str, Any]
    """The object of config.json."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """The content of files that a folder would have beside it, by name: tokenizer.json, tokenizer_config.json,
    chat_template.jinja, generation_config.json, …; they become ``Context.side_files``."""
    tokenizer_source: Any = None
    """What a tokenizer backend of the same package builds its tokenizer from; becomes ``Context.tokenizer_source``."""


@dataclass(frozen=True)
class CheckpointFormat:
    """A way to store weights. ``matches`` looks at the folder's config.json and headers (``Context.tensors``), or at
    the single file (``Context.path``, where ``Context.folder`` is None)."""

    name: str
    summary: str
    open: Callable[[Context], WeightSource]
    """Open a checkpoint lazily. Raises CheckpointError for damaged files, naming file and tensor."""
    save: Callable[[Iterable[tuple[str, Matrix | ExpertStack | Tensor]], Path, Context], None] | None = None
    """Write tensors under their full names into an existing empty folder, as ``*.safetensors`` and what else the
    format's manifest needs; the core writes config and tokenizer files and swaps the folder in."""
    matches: Matches = always
    priority: int = 0
    metadata: Callable[[Context], CheckpointMetadata] | None = None
    """Read config, tokenizer and template out of the format's own file, for a checkpoint without config.json. The
    context has only ``path``, and ``folder`` where it is one. Raises CheckpointError."""
