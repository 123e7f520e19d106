"""Choosing the format of a checkpoint folder, and saying what its weights are where no plugin can read them."""

from __future__ import annotations

from collections import Counter

from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.config.files import shown
from gemma4_core.descriptions import CheckpointFormat, Context
from gemma4_core.errors import CheckpointError, PluginError

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
