"""Training checkpoints: ordinary checkpoint folders that also hold an optimizer's state and a run's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import inverse_safe_dtypes, safe_dtypes

from gemma4_core.checkpoint import Planned, atomic_folder
from gemma4_core.checkpoint.contents import other_names, replaceable_save
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.model_weights import writable_format, write_model
from gemma4_core.checkpoint.opening import open_checkpoint
from gemma4_core.checkpoint.progress import Silent
from gemma4_core.checkpoint.shard import Shard
from gemma4_core.checkpoint.upload import copy_in
from gemma4_core.checkpoint.writer import check_room, write_file
from gemma4_core.config.files import JSON_LIMIT, parse_object, read_json
from gemma4_core.errors import CheckpointError, InputError
from gemma4_core.formatting import human_bytes, shown, shown_path
from gemma4_core.training.optimizer import TrainingOptimizer, check_state
from gemma4_core.training.step import adopted
from gemma4_core.training.weights import check_weights, take_weights

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel

STATE_FILE, RUN_FILE = "training_state.safetensors", "training_state.json"
VERSION = 1
"""Of ``training_state.json``."""
EXPONENTS = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "BF16": 0xFF << 7, "F16": 0x1F << 10}
"""Bits that are all set in infinities and NaN."""


def save_training_checkpoint(
    model: GemmaModel,
    folder: Path | str,
    optimizer: Any = None,
    training_metadata: Any = None,
    quantize: str | None = None,
) -> Path:
    """Write the model as a checkpoint folder that ``load_pretrained`` opens; it appears whole or not at all.

    Where a transform such as an adapter is what trains (``model.trained_part``) its files are written instead.

    Args:
        model: its weights go out in its run-time dtype under the names that they were loaded from.
        folder: an absent or empty folder, or one that holds a checkpoint and nothing else, which is replaced whole.
        optimizer: its state is written too, for ``load_training_checkpoint``.
        training_metadata: anything that JSON can say, such as ``{"step": 1}``; returned when loading.
        quantize: name of a format to store weights in; None is ordinary weights.

    Returns:
        the folder.

    Raises:
        InputError: metadata that JSON cannot say, or more than 16 MiB or a million values of it.
        PluginError: no such format.
        CheckpointError: the folder cannot be written, or is something else than a checkpoint.
    """
    run_text(training_metadata, optimizer)
    with atomic_folder(folder, replaceable_save) as temporary:
        if model.trained_part is None:
            write_model(model, temporary, writable_format(quantize))
        elif quantize is None:
            model.trained_part.save(temporary)
        else:
            raise InputError(f"quantize {quantize!r}: only a part of the model trains, and that is saved as it is")
        if optimizer is not None:
            write_state(adopted(model, optimizer), temporary / STATE_FILE)
        run = run_text(training_metadata, optimizer, other_names(temporary))
        (temporary / RUN_FILE).write_text(run, encoding="utf-8")
    return Path(folder)


def load_training_checkpoint(folder: Path | str, model: GemmaModel, optimizer: Any = None) -> Any:
    """Restore a model's weights and an optimizer's state in place; what training goes on with is bit for bit equal.

    Returns:
        the ``training_metadata`` that was saved, None where there was none.

    Raises:
        ConfigError, CheckpointError: the folder is not a checkpoint, or one of another model.
        InputError: an optimizer of another kind or over other tensors.
    """
    folder = Path(folder)
    run = read_run(folder) if (folder / RUN_FILE).exists() else {}
    restore(folder, model, optimizer, run)
    return run.get("training_metadata")


def read_run(folder: Path) -> dict[str, Any]:
    """The content of ``training_state.json``. Raises CheckpointError."""
    path = folder / RUN_FILE
    run = read_json(path, error=CheckpointError)
    if run.get("version") != VERSION:
        raise CheckpointError(f"{shown_path(path)}: version {shown(run.get('version'))} is not {VERSION}; the file is "
                              f"damaged or from another release")
    return run


def restore(folder: Path, model: GemmaModel, optimizer: Any, run: Mapping[str, Any]) -> None:
    """Weights and optimizer state in place; ``run`` is what ``read_run`` read. Raises a Gemma4Error."""
    part, where = model.trained_part, shown_path(folder)
    context = read_context(folder) if part is None else None
    name = None if optimizer is None else name_of(optimizer)
    if name is not None and run.get("optimizer") not in (None, name):
        raise InputError(f"{shown_path(folder / RUN_FILE)}: the optimizer state is of {shown(run['optimizer'])} and "
                         f"does not fit this {name} optimizer; use the same, or start anew in another folder")
    trained = None if optimizer is None else adopted(model, optimizer)
    if trained is not None and not (folder / STATE_FILE).exists():
        raise CheckpointError(f"{where} has no {STATE_FILE}, so no optimizer can go on from it; save with optimizer=, "
                              f"or load with optimizer=None")
    state = None if trained is None else read_state(trained, folder / STATE_FILE)
    if part is not None:
        part.load(folder)
        model.invalidate()
    elif context is not None:
        with open_checkpoint(context) as checkpoint:
            check_weights(model, checkpoint.weights, folder)
            take_weights(model, checkpoint.weights)
    if trained is not None and state is not None:
        trained.load_state_dict(state)


def name_of(optimizer: Any) -> str:
    """What ``training_state.json`` calls an optimizer."""
    return optimizer.name if isinstance(optimizer, TrainingOptimizer) else type(optimizer).__name__


def run_text(metadata: Any, optimizer: Any, files: Sequence[str] = ()) -> str:
    """The content of ``training_state.json``; ``files`` are those that a plugin wrote under names of its own. Raises
    InputError for metadata that JSON cannot say, or that could not be read again."""
    name = None if optimizer is None else name_of(optimizer)
    data = {"version": VERSION, "optimizer": name, "training_metadata": metadata}
    if files:
        data["files"] = list(files)
    try:
        text = json.dumps(data, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as fault:
        raise InputError(f"training_metadata {shown(repr(metadata))} is not plain JSON: {shown(str(fault))}") from fault
    if len(text) > JSON_LIMIT:
        raise InputError(f"training_metadata has {human_bytes(len(text))}; at most {JSON_LIMIT >> 20} MiB can be kept")
    parse_object(text.encode(), "training_metadata", InputError)
    return text


def write_state(optimizer: TrainingOptimizer, path: Path) -> None:
    """An optimizer's tensors as a safetensors file. Raises CheckpointError for a dtype that such files lack."""
    state = {name: tensor.contiguous().realize() for name, tensor in optimizer.state_dict().items()}
    odd = next((name for name, tensor in state.items() if tensor.dtype not in inverse_safe_dtypes), None)
    if odd is not None:
        raise CheckpointError(f"optimizer {optimizer.name}: state {shown(odd)} is {state[odd].dtype}, which "
                              f"safetensors files cannot hold")
    plan = [Planned(n, inverse_safe_dtypes[t.dtype], tuple(int(s) for s in t.shape)) for n, t in state.items()]

    def data(planned: Planned) -> list[memoryview]:
        buffer = state[planned.name].uop.buffer.ensure_allocated()
        return [buffer.as_memoryview(allow_zero_copy=True)]

    check_room(path.parent, sum(planned.nbytes for planned in plan))
    with open(path, "xb") as file:
        write_file(file, plan, data, {"optimizer": optimizer.name}, Silent())


def read_state(optimizer: TrainingOptimizer, path: Path) -> Mapping[str, Tensor]:
    """An optimizer's tensors from a file. Raises CheckpointError for a damaged file, InputError for another
    optimizer's; both name the file and the tensor."""
    where = shown_path(path)
    own = optimizer.state_dict()
    shard = Shard(path)
    try:
        entries = shard.header.tensors
        check_state(own, {name: entry.shape for name, entry in entries.items()}, optimizer.name, where)
        device = str(optimizer.params[0].device)
        found = {}
        for name, entry in entries.items():
            dtype = safe_dtypes[entry.dtype]
            if dtype != own[name].dtype:
                ours = inverse_safe_dtypes.get(own[name].dtype, own[name].dtype)
                raise InputError(f"{where}: {shown(name)} is {entry.dtype}, this {optimizer.name} optimizer holds it "
                                 f"as {ours}; use the same options")
            bits = np.empty(entry.nbytes // dtype.itemsize, f"u{dtype.itemsize}")
            shard.read(entry.start, bits)
            mask = EXPONENTS.get(entry.dtype)
            if mask is not None and ((bits & bits.dtype.type(mask)) == mask).any():
                raise CheckpointError(f"{where}: {shown(name)} has values that are not finite numbers; go on from an "
                                      f"earlier checkpoint")
            found[name] = Tensor.empty(*entry.shape, dtype=dtype, device=device)
            copy_in(found[name].uop.buffer.ensure_allocated(), 0, bits, dtype)
        return found
    finally:
        shard.file.close()
