"""Writing a checkpoint with adapters merged into its weights, a block of rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gemma4_core import InputError, registry
from gemma4_core.checkpoint import (
    RowBlocks,
    TensorBlocks,
    check_out,
    open_checkpoint,
    read_context,
    resolve_folder,
    rewrite_checkpoint,
    run_dtype,
    stream_weights,
)
from gemma4_core.formatting import is_number, shown
from gemma4_lora.files import AdapterFiles, Pair, read_adapter

Weight = RowBlocks | TensorBlocks


def fuse(
    source: str | Path,
    adapters: Sequence[str | Path],
    target: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    strength: float = 1.0,
    overwrite: bool = True,
) -> Path:
    """Write a checkpoint whose weights are base plus adapters; no device is opened.

    Args:
        source: folder, hub name or alias of the base model, in any format that can be written.
        adapters: adapter folders; their changes add up.
        target: an absent or empty folder, or one that holds a checkpoint and nothing else, which is replaced whole.
        format: what to write: None is the base's own (changed int8 matrices are quantised again, others stay as they
            are), ``bf16`` ordinary weights, ``int8`` quantised ones.
        dtype: ``bfloat16`` or ``float32`` for what is not quantised; None is the base's own.
        strength: a factor on the adapters' scale.
        overwrite: False refuses to replace a checkpoint too.

    Returns:
        the target.

    Raises:
        CheckpointError: an adapter does not fit the base, files are damaged, or the target cannot be written.
        InputError, PluginError: a value that cannot be used.
    """
    if not is_number(strength):
        raise InputError(f"--strength {shown(strength)}: a finite number is expected")
    if not adapters:
        raise InputError("--adapter is missing: give the folder of at least one adapter")
    context = read_context(resolve_folder(source))
    assert context.config is not None
    check_out(context, target, overwrite)
    changes = [read_adapter(folder, context.config) for folder in adapters]
    added = pairs_of(changes, strength)
    with open_checkpoint(context) as checkpoint:
        checkpoint.check_all()
        chosen = checkpoint.format if format is None else registry.select("format", None, format)
        if chosen.save is None:
            raise InputError(f"--format {shown(format or chosen.name)} can be read, not written")
        run = run_dtype(checkpoint.config, checkpoint.infos, dtype)
        weights = stream_weights(checkpoint, run, keep=chosen.name == checkpoint.format.name)
        fused = [plus(weight, added.get(weight.name, ())) for weight in weights]
        plan = plan_of(changes, strength, chosen.name, run)
        rewrite_checkpoint(context, fused, target, chosen, run, plan, "fusing", overwrite)
    return Path(target)


def pairs_of(adapters: Sequence[AdapterFiles], strength: float) -> dict[str, list[Pair]]:
    """The changes to each matrix."""
    found: dict[str, list[Pair]] = {}
    for adapter in adapters:
        for name, pair in adapter.pairs.items():
            found.setdefault(name, []).append(replace(pair, scale=pair.scale * strength))
    return found


def plus(weight: Weight, pairs: Sequence[Pair]) -> Weight:
    """A weight with changes added in fp32, a block of rows at a time."""
    if not pairs or not isinstance(weight, RowBlocks):
        return weight
    read = weight.read

    def rows(index: np.ndarray) -> np.ndarray:
        values = np.asarray(read(index), np.float32)
        return sum((pair.rows(index) for pair in pairs), values)

    return replace(weight, read=rows, hold=None)


def plan_of(adapters: Sequence[AdapterFiles], strength: float, format: str, dtype: str) -> str:
    """Identifies the inputs for which a half-written result is valid."""
    content = hashlib.sha256(repr((format, dtype, strength)).encode())
    for adapter in adapters:
        for name, pair in sorted(adapter.pairs.items()):
            content.update(f"{name} {pair.scale} {pair.a.shape} {pair.b.shape}".encode())
            content.update(pair.a.data)
            content.update(pair.b.data)
    return f"fused {content.hexdigest()}"
