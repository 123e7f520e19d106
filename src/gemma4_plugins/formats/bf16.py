"""The ``bf16`` checkpoint format: ordinary safetensors files of bfloat16, fp16 or fp32 weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma4_core.checkpoint.files import CheckpointFiles
from gemma4_core.checkpoint.opening import MARKERS
from gemma4_core.checkpoint.saving import save_safetensors
from gemma4_core.checkpoint.source import FileSource
from gemma4_core.contracts import FORMAT_KEY, CheckpointFormat, Context, WeightBlocks
from gemma4_core.errors import CheckpointError, summarise
from gemma4_core.formatting import shown, shown_path
from gemma4_core.hookspecs import hookimpl


def matches(context: Context) -> bool:
    """Whether the folder's safetensors files hold plain weights. Damaged files count too: opening them says what is
    wrong."""
    marked = any(context.raw_config.get(marker) is not None for marker in (FORMAT_KEY, *MARKERS))
    if context.folder is None or marked:
        return False
    try:
        tensors = context.tensors
    except CheckpointError:
        return True
    return bool(tensors) and all(info.dtype != "I8" for info in tensors.values())


def open_plain(context: Context) -> FileSource:
    """Open a folder. Raises CheckpointError for damaged files, and for weights that are not plain numbers."""
    where = shown_path(context.path or "checkpoint")
    for marker in MARKERS:
        if context.raw_config.get(marker) is not None:
            value = shown(context.raw_config[marker])
            reason = "the bf16 format reads plain weights only; use the plugin of that format"
            raise CheckpointError(f"{where}/config.json: {marker} is {value}; {reason}")
    files = CheckpointFiles.open(context)
    packed = [f"{shown(name)} is {info.dtype}" for name, info in files.infos.items() if info.dtype == "I8"]
    if packed:
        files.close()
        raise summarise("tensors are packed, and the bf16 format reads plain weights only", packed, where)
    return FileSource(files)


def save_plain(weights: Sequence[WeightBlocks], folder: Path, context: Context) -> None:
    """Write weights under their names in the type that the model computes in."""
    save_safetensors(weights, folder)


@hookimpl
def gemma4_checkpoint_formats() -> list[CheckpointFormat]:
    """The format of the released checkpoints."""
    summary = "plain safetensors weights in bfloat16, fp16 or fp32, one file or shards"
    return [CheckpointFormat("bf16", summary, open_plain, save_plain, matches, default_for=("save",))]
