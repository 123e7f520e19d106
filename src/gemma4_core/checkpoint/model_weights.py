"""A loaded model written as a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemma4_core.checkpoint import atomic_folder
from gemma4_core.checkpoint.blocks import RowBlocks, SavedWeights, blocks_of
from gemma4_core.checkpoint.contents import replaceable_checkpoint
from gemma4_core.checkpoint.convert import RUN_NAMES
from gemma4_core.checkpoint.opening import format_for, open_checkpoint
from gemma4_core.checkpoint.roles import TABLE, Roles
from gemma4_core.checkpoint.saving import write_checkpoint
from gemma4_core.checkpoint.upload import NAMES
from gemma4_core.config import expected_text_tensors
from gemma4_core.contracts import CheckpointFormat
from gemma4_core.errors import CheckpointError, Gemma4Error, InputError
from gemma4_core.formatting import shown_path
from gemma4_core.model.model import GemmaModel

DTYPES = {stored: name for name, stored in RUN_NAMES.items()}
"""The config's name of a dtype by the file format's name."""


def save_weights(model: GemmaModel, folder: Path | str, format: str | None = None) -> Path:
    """Write a model without any training state; see ``LoadedModel.save_pretrained``."""
    with atomic_folder(folder, replaceable_checkpoint) as temporary:
        write_model(model, temporary, writable_format(format))
    return Path(folder)


def write_model(model: GemmaModel, folder: Path, chosen: CheckpointFormat) -> None:
    """Write every weight, with config and tokenizer files, into an empty folder."""
    roles = Roles(model.config)
    with all_weights(model) as weights:
        named = {model.stored_names.get(name, name): value for name, value in weights.items()}
        saved = [value if isinstance(value, RowBlocks) else blocks_of(name, value, roles.of(name, value.shape))
                 for name, value in named.items()]
        write_checkpoint(folder, model.context, chosen, SavedWeights(saved), DTYPES[NAMES[model.dtype]])


def writable_format(quantize: str | None) -> CheckpointFormat:
    """The format to write; None is the one for ordinary weights. Raises InputError for one that only reads."""
    if quantize is not None and not isinstance(quantize, str):
        raise InputError(f"quantize {quantize!r}: give the name of a format, or None")
    return format_for("save", quantize)


@contextmanager
def all_weights(model: GemmaModel) -> Iterator[dict[str, Any]]:
    """Every weight of the model's checkpoint by full name, as a format's ``save`` takes them.

    Towers that were not loaded come from the model's own folder. Raises CheckpointError where that is gone.
    """
    found: dict[str, Any] = {name: place.matrix for name, place in model.places.items()} | model.tensors
    if model.ple_host is not None:
        table = model.config.text_prefix + "embed_tokens_per_layer.weight"
        shape = expected_text_tensors(model.config)[table]
        stored = model.stored_names.get(table, table)
        found[table] = RowBlocks(stored, shape, TABLE, NAMES[model.dtype], model.ple_host.read)
    for tower in model.towers.values():
        places = getattr(tower, "places", {})
        inner = {name + suffix for name, place in places.items() for suffix in place.matrix.parts()}
        found |= {name: tensor for name, tensor in tower.parameters().items() if name not in inner}
        found |= {name: place.matrix for name, place in places.items()}
    absent = [n for spec in model.known_specs if spec.name not in model.towers for n in spec.tensors(model.config)]
    absent = [name for name in dict.fromkeys([*absent, *model.unserved]) if name not in found]
    if not absent:
        yield found
        return
    path = model.context.path
    try:
        with open_checkpoint(model.context, model.format_name) as checkpoint:
            source = checkpoint.weights
            # on tinygrad's CPU device these lie on the mapped file
            found |= {n: source.tensor(n, model.device, model.dtype) for n in absent if n in source.infos}
            yield found
    except Gemma4Error as fault:
        if path is not None and path.exists():
            raise
        raise CheckpointError(f"the towers that were not loaded cannot be saved: {shown_path(path)} is gone; "
                              f"load the model with all its modalities") from fault
