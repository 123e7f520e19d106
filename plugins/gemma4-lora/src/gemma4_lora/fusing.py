"""Writing a checkpoint with adapters merged into its weights, a block of rows at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core import CheckpointFormat, Context, InputError, WeightSource, registry
from gemma4_core.checkpoint import HostWeight, check_stored, open_checkpoint, resolve_folder
from gemma4_core.config import read_context
from gemma4_core.formatting import is_number, shown
from gemma4_core.quantize import StoredWeight, check_out, rewrite
from gemma4_lora.files import AdapterFiles, Pair, read_adapter

if TYPE_CHECKING:
    from tinygrad.dtype import DType

Rows = Callable[[np.ndarray], np.ndarray]
FLOATS = ("BF16", "F16", "F32")


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
    from gemma4_core.loading import choose_dtype

    if not is_number(strength):
        raise InputError(f"--strength {shown(strength)}: a finite number is expected")
    if not adapters:
        raise InputError("--adapter is missing: give the folder of at least one adapter")
    context = read_context(resolve_folder(source))
    assert context.config is not None
    check_out(context, target, overwrite)
    changes = [read_adapter(folder, context.config) for folder in adapters]
    with opened(context) as (stored, weights):
        chosen: CheckpointFormat = stored if format is None else registry.select("format", None, format)
        if chosen.save is None:
            raise InputError(f"--format {shown(format or chosen.name)} can be read, not written")
        run = choose_dtype(dtype, weights.infos, context.config)
        added = pairs_of(changes, strength)
        keep = chosen.name == stored.name
        give = lambda names: fused(names, weights, added, run, keep)  # noqa: E731
        plan = plan_of(changes, strength, chosen.name, run)
        rewrite(context, weights, target, chosen, run, give, plan, "fusing", overwrite)
    return Path(target)


@contextmanager
def opened(context: Context) -> Iterator[tuple[CheckpointFormat, WeightSource]]:
    """The base's format and its weights, compared with its config."""
    stored, weights = open_checkpoint(context)
    try:
        check_stored(context, weights)
        yield stored, weights
    finally:
        weights.close()


def pairs_of(adapters: Sequence[AdapterFiles], strength: float) -> dict[str, list[Pair]]:
    """What is added to each matrix."""
    found: dict[str, list[Pair]] = {}
    for adapter in adapters:
        for name, pair in adapter.pairs.items():
            found.setdefault(name, []).append(replace(pair, scale=pair.scale * strength))
    return found


def fused(
    names: Sequence[str], source: WeightSource, added: Mapping[str, Sequence[Pair]], dtype: DType, keep: bool
) -> Iterator[tuple[str, Any]]:
    """Weights as a format's ``save`` takes them. With ``keep`` quantised ones that nothing changes stay as they are."""
    for name in names:
        info = source.infos[name]
        if keep and name not in added and info.dtype not in FLOATS:
            hold = source.stack if len(info.shape) == 3 else source.matrix
            yield name, hold(name, "PYTHON", dtype)
        elif len(info.shape) >= 2:
            read = source.row_reader(name, in_memory=False)
            yield name, HostWeight(plus(read, added.get(name, ())), info.shape, dtype)
        else:
            yield name, StoredWeight(source, name, dtype)


def plus(read: Rows, pairs: Sequence[Pair]) -> Rows:
    """Rows of a matrix with changes added, in fp32."""

    def rows(index: np.ndarray) -> np.ndarray:
        values = np.asarray(read(index), np.float32)
        return sum((pair.rows(index) for pair in pairs), values)

    return rows if pairs else read


def plan_of(adapters: Sequence[AdapterFiles], strength: float, format: str, dtype: DType) -> str:
    """What a half-written result is valid for."""
    content = hashlib.sha256(repr((format, str(dtype), strength)).encode())
    for adapter in adapters:
        for name, pair in sorted(adapter.pairs.items()):
            content.update(f"{name} {pair.scale} {pair.a.shape} {pair.b.shape}".encode())
            content.update(pair.a.data)
            content.update(pair.b.data)
    return f"fused {content.hexdigest()}"
