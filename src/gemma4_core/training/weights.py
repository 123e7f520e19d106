"""A model's weights as a checkpoint holds them, and back into the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor

from gemma4_core.checkpoint import check_tensors
from gemma4_core.checkpoint.blocks import RowBlocks
from gemma4_core.checkpoint.names import NamedSource
from gemma4_core.checkpoint.opening import open_checkpoint
from gemma4_core.checkpoint.roles import TABLE
from gemma4_core.checkpoint.upload import NAMES
from gemma4_core.config import expected_text_tensors
from gemma4_core.contracts import WeightSource
from gemma4_core.errors import CheckpointError, Gemma4Error
from gemma4_core.formatting import shown_path
from gemma4_core.weights import DenseMatrix, DenseStack, ExpertStack

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


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


def check_weights(model: GemmaModel, source: NamedSource, folder: Path) -> None:
    """Raise CheckpointError unless a folder has every tensor of the model in its shape, stored copies alike."""
    extra = {name: shape for spec in model.tower_specs for name, shape in spec.tensors(model.config).items()}
    check_tensors(model.config, source.infos, extra, lambda name: True, shown_path(folder))
    source.check_copies(shown_path(folder))


def take_weights(model: GemmaModel, source: WeightSource) -> None:
    """Put a folder's weights into the model; ordinary tensors keep their memory, so captured graphs stay right."""
    for name, place in model.places.items():
        if isinstance(place.matrix, DenseMatrix | DenseStack):
            overwrite(place.matrix.tensor, source.tensor(name, model.device, place.matrix.tensor.dtype))
        elif isinstance(place.matrix, ExpertStack):
            place.matrix = source.stack(name, model.device, model.dtype)
        else:
            place.matrix = source.matrix(name, model.device, model.dtype)
    for tensors in (model.tensors, *(tower.parameters() for tower in model.towers.values())):
        for name, tensor in tensors.items():
            overwrite(tensor, source.tensor(name, model.device, tensor.dtype))
    if model.ple_host is not None:
        table = model.config.text_prefix + "embed_tokens_per_layer.weight"
        model.ple_host.read = source.row_reader(table, in_memory=False)
    model.invalidate()


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Copy a tensor's content into another of the same shape and dtype; without a kernel where both are plain."""
    if all(t.uop.has_buffer_identity() and t.uop.is_realized for t in (tensor, value)):
        tensor.uop.buffer.ensure_allocated().copy_from(value.uop.buffer.ensure_allocated())
    else:
        tensor.assign(value.to(tensor.device).contiguous()).realize()
