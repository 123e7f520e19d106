"""Checkpoint formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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


class WeightBlocks(Protocol):
    """A weight that is to be written, read as blocks of rows in the host's memory."""

    @property
    def name(self) -> str:
        """Full checkpoint name."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def role(self) -> str:
        """``table`` (embeddings), ``matrix`` (of a decoder layer), ``experts`` (a stack of matrices), ``vector``, or
        ``other``: not of the text model. ``quantizable(name, role)`` says whether it is worth quantising."""

    @property
    def dtype(self) -> str:
        """The type that the model computes in, ``BF16`` or ``F32``: what ordinary weights are stored in."""

    @property
    def held(self) -> Matrix | ExpertStack | None:
        """What the model holds it as, None where it is read from a file of another format. A format whose own storage
        this is copies its parts, so that nothing is quantised twice. May read the weight: look at it when its turn has
        come, as late as ``blocks``."""

    def blocks(self) -> Iterator[np.ndarray]:
        """fp32 rows in order, a bounded number at a time: ``[n, *shape[1:]]``; a scalar is one block ``[]``."""

    def bits(self) -> Iterator[np.ndarray]:
        """The same numbers in ``dtype``, as a file stores them: float32, or uint16 with the bits of bfloat16."""


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
    save: Callable[[Sequence[WeightBlocks], Path, Context], Mapping[str, Any] | None] | None = None
    """Write all weights under their names into an existing empty folder, as files of any name and number; the core
    writes config and tokenizer files and swaps the folder in. What it returns stands in config.json under
    ``gemma4_format`` beside the format's name (``Context.manifest``); None writes nothing there. None of the weights
    has been read yet; iterate over them once or more often. Raises CheckpointError."""
    matches: Matches = always
    priority: int = 0
    quantizes: bool = False
    """Whether it stores weights with fewer bits than they had: what is quantised already is not quantised again."""
    default_for: tuple[str, ...] = ()
    """Tasks for which it is taken where the user names no format: ``save`` (ordinary weights, as in training) and
    ``quantize``; of several formats the one with the highest priority."""
    metadata: Callable[[Context], CheckpointMetadata] | None = None
    """Read config, tokenizer and template out of the format's own file, for a checkpoint without config.json. The
    context has only ``path``, and ``folder`` where it is one. Raises CheckpointError."""
