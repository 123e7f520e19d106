"""Writing a checkpoint in another format, a block of rows at a time, without ever holding the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemma4_core.checkpoint.contents import is_checkpoint
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.convert import STORED
from gemma4_core.checkpoint.hub import resolve_folder
from gemma4_core.checkpoint.opening import Checkpoint, format_for, open_checkpoint, run_dtype
from gemma4_core.checkpoint.rewrite import check_out, rewrite_checkpoint
from gemma4_core.checkpoint.streaming import stream_weights
from gemma4_core.errors import CheckpointError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.plugins import registry

if TYPE_CHECKING:
    from gemma4_core.contracts import CheckpointFormat


def quantize(
    source: str | Path, target: str | Path, format: str | None = None, overwrite: bool = True
) -> Path:
    """Write a checkpoint in another format.

    Args:
        source: a folder, a single file, a hub name or an alias, with ordinary weights; quantised ones are only made
            ordinary again.
        target: an absent or empty folder, or one that holds a checkpoint and nothing else, which is replaced whole.
        format: name of a checkpoint format plugin that can be written; None is the one that plugins bring for this.
        overwrite: False refuses to replace a checkpoint too.

    Returns:
        the target.

    Raises:
        CheckpointError, ConfigError: the source is damaged or quantised already, or the target cannot be written.
        PluginError, InputError: no such format, or one that cannot be written.
    """
    chosen = format_for("quantize", format)
    context = read_context(resolve_folder(source))
    check_out(context, target, overwrite)
    with open_checkpoint(context) as checkpoint:
        refuse_quantised(checkpoint, chosen)
        checkpoint.check_all()
        dtype = run_dtype(checkpoint.config, checkpoint.infos)
        weights = stream_weights(checkpoint, dtype)
        rewrite_checkpoint(context, weights, target, chosen, dtype, chosen.name, overwrite=overwrite)
    return Path(target)


def done_before(target: Path, format: str) -> bool:
    """Whether a folder is a checkpoint of this format already."""
    if not is_checkpoint(target):
        return False
    chosen: CheckpointFormat = registry.select("format", None, format)
    return bool(chosen.matches(read_context(target)))


def refuse_quantised(checkpoint: Checkpoint, chosen: CheckpointFormat) -> None:
    """Raise CheckpointError where quantised weights would be quantised a second time."""
    if not chosen.quantizes:
        return
    packed = next((name for name, info in checkpoint.infos.items() if info.dtype not in STORED), None)
    if packed is not None:
        stands = f"{shown(packed)} is {checkpoint.infos[packed].dtype}"
        raise CheckpointError(f"{shown_path(checkpoint.context.path)} is quantised already ({stands}); give the "
                              f"checkpoint with ordinary weights")
