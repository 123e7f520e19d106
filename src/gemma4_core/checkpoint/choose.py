"""Opening a checkpoint folder: which format it is in, which type it computes in, and what its weights are where no
plugin can read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from gemma4_core.checkpoint.convert import RUN_NAMES, STORED
from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.names import NamedSource
from gemma4_core.config import GemmaConfig
from gemma4_core.contracts import CheckpointFormat, Context, TensorInfo
from gemma4_core.errors import CheckpointError, PluginError
from gemma4_core.formatting import shown

MARKERS = ("quantization_config", "quantization")
"""Keys of config.json that say that weights are not plain numbers."""


def select_format(context: Context, name: str | None = None) -> CheckpointFormat:
    """The format plugin for a folder, by name or the one that matches.

    Raises:
        PluginError: an unknown name, a tie, or no plugin for the folder; the last says how its weights are stored.
        CheckpointError: no plugin, and the files are damaged or absent.
    """
    from gemma4_core.plugins import registry

    try:
        return registry.select("format", context, name)
    except PluginError as fault:
        if name is not None or registry.matching("format", context):
            raise
        raise PluginError(f"{fault}; {storage(context)}"[:490]) from fault


def open_checkpoint(context: Context, name: str | None = None) -> tuple[CheckpointFormat, NamedSource]:
    """A folder's format, by name or the one that matches, and its open weights by released name.

    Raises PluginError and CheckpointError as ``select_format`` and the format do.
    """
    from gemma4_core.plugins import registry

    assert context.config is not None
    towers = registry.matching("modality", context)  # a wrong config is told before files are read
    chosen = select_format(context, name)
    return chosen, NamedSource(chosen.open(context), context.config, towers)


def run_dtype(config: GemmaConfig, infos: Mapping[str, TensorInfo]) -> str:
    """Name of the type that a checkpoint computes in unless another is asked for: ``bfloat16`` or ``float32``.

    It is the type that config.json names, else the one that most of the files' numbers have: numbers, not bytes, which
    would count one in fp32 twice. Weights of other types are converted to it. fp16 computes in bfloat16, whose range
    the model was made for.
    """
    name = config.declared_dtype
    if name is None:
        numbers: Counter[str] = Counter()
        for info in infos.values():
            numbers[info.dtype] += math.prod(info.shape)
        stored = {stored: name for name, stored in RUN_NAMES.items()}
        name = next((stored[dtype] for dtype, _ in numbers.most_common() if dtype in stored), None)
    return "float32" if name == "float32" else "bfloat16"


def loaded_bytes(info: TensorInfo, itemsize: int) -> int:
    """Bytes of a tensor on a device, where plain weights take ``itemsize`` each and packed ones what they are."""
    return math.prod(info.shape) * itemsize if info.dtype in STORED else info.nbytes


def storage(context: Context) -> str:
    """How the weights of a folder are stored, from its config and headers. Raises CheckpointError for damaged files."""
    marked = [
        f"{key} is {shown(context.raw_config[key])}" for key in MARKERS if context.raw_config.get(key) is not None
    ]
    if context.folder is None:
        raise CheckpointError("a checkpoint folder is needed to choose its format")
    files = CheckpointFiles.open(context.folder)
    files.close()
    counts = Counter(info.dtype for info in files.infos.values())
    tensors = ", ".join(f"{count} {dtype}" for dtype, count in counts.most_common())
    return "; ".join([*marked, f"its tensors are {tensors or 'none'}"])
