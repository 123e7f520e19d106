"""Opening a checkpoint: which format it is in, which type it computes in, and how its weights are stored if no plugin
can read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.convert import RUN_NAMES, STORED
from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.hub import resolve_folder
from gemma4_core.checkpoint.names import NamedSource
from gemma4_core.checkpoint.unserved import check_source, check_stored
from gemma4_core.config import GemmaConfig
from gemma4_core.contracts import CheckpointFormat, Context, ModalityTower, TensorInfo
from gemma4_core.errors import InputError, PluginError
from gemma4_core.formatting import shown
from gemma4_core.plugins import registry

MARKERS = ("quantization_config", "quantization")
"""Keys of config.json that say that weights are not plain numbers."""


def select_format(context: Context, name: str | None = None) -> CheckpointFormat:
    """The format plugin for a folder, by name or the one that matches.

    Raises:
        PluginError: an unknown name, a tie, or no plugin for the folder; the last says how its weights are stored.
        CheckpointError: no plugin, and the files are damaged or absent.
    """
    try:
        return registry.select("format", context, name)
    except PluginError as fault:
        if name is not None or registry.matching("format", context):
            raise
        raise PluginError(f"{fault}; {storage(context)}"[:490]) from fault


def format_for(task: str, name: str | None = None) -> CheckpointFormat:
    """The format to write: by name, or (None or ``auto``) the one that plugins bring for a task, ``save`` or
    ``quantize``. Raises PluginError where there is none, InputError for one that only reads."""
    chosen: CheckpointFormat
    if name is not None and str(name).lower() != "auto":
        chosen = registry.select("format", None, name)
    else:
        found = [one for one in registry.formats.values() if task in one.default_for and one.save is not None]
        if not found:
            raise PluginError(f"no format plugin is the default to {task} in; name one with --format (gemma4 plugins "
                              f"lists them)")
        chosen = max(found, key=lambda one: one.priority)
    if chosen.save is None:
        raise InputError(f"--format {shown(chosen.name)} can be read, not written")
    return chosen


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: its format, and its weights by released name. Headers are read, no weights yet.

    Close it, or use it as a context manager; tensors handed out stay valid.
    """

    context: Context
    format: CheckpointFormat
    weights: NamedSource

    @property
    def config(self) -> GemmaConfig:
        """The parsed config."""
        assert self.context.config is not None
        return self.context.config

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor by released name."""
        return self.weights.infos

    @property
    def towers(self) -> Sequence[ModalityTower]:
        """The modalities that the config declares and that a plugin serves."""
        return self.weights.towers

    def check(self, towers: Sequence[ModalityTower], chosen: bool = False, copies: bool = True) -> tuple[str, ...]:
        """Compare the files with the config and the towers that will be loaded; see ``check_source``."""
        return check_source(self.context, self.weights, towers, chosen, copies)

    def check_all(self) -> None:
        """Compare the files with the config and every tower that they have weights of, before all of it is rewritten.
        Raises CheckpointError."""
        check_stored(self.context, self.weights)

    def close(self) -> None:
        """Close the files."""
        self.weights.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(checkpoint: Context | str | Path, format: str | None = None) -> Checkpoint:
    """Open a checkpoint in the format of this name, or (None or ``auto``) the one that matches.

    Args:
        checkpoint: a folder, a single file, a hub name or an alias, or a context that has been read.
        format: name of a format.

    Raises:
        PluginError, CheckpointError: as ``select_format`` and the format do.
        ConfigError: the checkpoint's config is damaged.
    """
    if not isinstance(checkpoint, Context):
        checkpoint = read_context(resolve_folder(checkpoint), format)
    assert checkpoint.config is not None
    towers = registry.matching("modality", checkpoint)  # a wrong config is reported before files are read
    chosen = select_format(checkpoint, format)
    return Checkpoint(checkpoint, chosen, NamedSource(chosen.open(checkpoint), checkpoint.config, towers))


RUN_DTYPES = ("bfloat16", "float32")


def run_dtype(config: GemmaConfig, infos: Mapping[str, TensorInfo], dtype: str | None = None) -> str:
    """Name of the type that a checkpoint computes in: ``bfloat16`` or ``float32``. Raises InputError for a ``dtype``
    that is neither (``bf16`` and ``fp32`` are understood).

    With ``dtype`` None it is the type that config.json names, else the one that most of the files' numbers have:
    numbers, not bytes, which would count one in fp32 twice. Weights of other types are converted to it. fp16 computes
    in bfloat16, whose range the model was made for.
    """
    if dtype is not None:
        name = str(dtype).removeprefix("dtypes.").removeprefix("torch.")
        name = {"bf16": "bfloat16", "fp32": "float32", "float": "float32"}.get(name, name)
        if name not in RUN_DTYPES:
            raise InputError(f"dtype {dtype!r}: choose one of {', '.join(RUN_DTYPES)}")
        return name
    declared = config.declared_dtype
    if declared is None:
        numbers: Counter[str] = Counter()
        for info in infos.values():
            numbers[info.dtype] += math.prod(info.shape)
        stored = {stored: name for name, stored in RUN_NAMES.items()}
        declared = next((stored[dtype] for dtype, _ in numbers.most_common() if dtype in stored), None)
    return "float32" if declared == "float32" else "bfloat16"


def loaded_bytes(info: TensorInfo, itemsize: int) -> int:
    """Bytes of a tensor on a device, where plain weights take ``itemsize`` each and packed ones what they are."""
    return math.prod(info.shape) * itemsize if info.dtype in STORED else info.nbytes


def storage(context: Context) -> str:
    """How the weights of a folder are stored, from its config and headers. Raises CheckpointError for damaged files."""
    marked = [
        f"{key} is {shown(context.raw_config[key])}" for key in MARKERS if context.raw_config.get(key) is not None
    ]
    if context.folder is not None:
        CheckpointFiles.open(context).close()  # raises where there are none
    counts = Counter(info.dtype for info in context.tensors.values())
    tensors = ", ".join(f"{count} {dtype}" for dtype, count in counts.most_common())
    return "; ".join([*marked, f"its tensors are {tensors or 'none'}"])
