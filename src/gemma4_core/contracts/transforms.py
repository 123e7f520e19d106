"""Model transforms: adapters and the like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemma4_core.contracts.context import Context, Matches, Option, always

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.model import GemmaModel


class AdapterSet(Protocol):
    """Adapters of one model, of which some are in force; what a transform sets as ``model.adapters``."""

    @property
    def loaded(self) -> Mapping[str, Any]:
        """Those that can be put in force, by name."""

    @property
    def active(self) -> Mapping[str, float]:
        """Names of those in force, with their strength."""

    def activate(self, *names: str, strength: float = 1.0) -> None:
        """Put these in force, and no others. Raises InputError for one that is not loaded."""

    def deactivate(self) -> None:
        """Put none in force."""


@dataclass(frozen=True)
class TrainedPart:
    """What trains and is saved in place of the whole model, such as an adapter's matrices."""

    tensors: Mapping[str, Tensor]
    """All that may train, by name; ``trainable`` and ``frozen`` choose among these. The rest of the model is frozen."""
    save: Callable[[Path], None]
    """Write its own files into an existing folder; the core writes the optimizer's state beside them and makes the
    folder appear whole. Raises CheckpointError."""
    load: Callable[[Path], None]
    """Read back in place what ``save`` wrote: the same ``tensors`` with that content, bit for bit. Raises
    CheckpointError, with nothing changed, where the files do not fit."""
    begin: Callable[[int, int], None] | None = None
    """Told the number of a training step and that of a batch in it before each batch: what a part draws at random, such
    as dropout, depends on them alone, so that a run that goes on draws what it would have drawn."""


@dataclass(frozen=True)
class ModelTransform:
    """A change to an assembled model before it runs or trains."""

    name: str
    summary: str
    apply: Callable[[GemmaModel, Mapping[str, Any]], None]
    """Change the model in place; gets the values of ``options`` by keyword. Called only when ``wanted`` holds."""
    options: tuple[Option, ...] = ()
    files: tuple[str, ...] = ()
    """Names of files or folders inside a checkpoint that are this transform's own."""
    trained_part: Callable[[GemmaModel, Mapping[str, Any]], TrainedPart | None] | None = None
    """Asked after ``apply`` with the same arguments: what then trains and is saved in place of the whole model. None:
    the model trains and is saved whole. It becomes ``model.trained_part``, which ``build_optimizer``,
    ``save_training_checkpoint`` and ``load_training_checkpoint`` go by."""
    check: Callable[[Context, Mapping[str, Any]], None] | None = None
    """Look at the values of ``options`` before any weight is read; raises a Gemma4Error where ``apply`` would."""
    based_on: Callable[[Path], tuple[str | None, Mapping[str, Any]] | None] | None = None
    """What a folder without weights of a model stands for, where it is this transform's, such as an adapter: name or
    folder of the checkpoint that it is made for (None where it does not say) and the ``options`` that apply it. None
    for any other folder."""
    matches: Matches = always
    priority: int = 0

    def wanted(self, values: Mapping[str, Any], context: Context) -> bool:
        """Whether one of its options was given or one of its files is in the folder."""
        given = any(values.get(option.keyword) not in (None, (), option.default) for option in self.options)
        return given or any(context.folder is not None and (context.folder / name).exists() for name in self.files)
