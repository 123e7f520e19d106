"""A model's weights as a checkpoint holds them, and back into the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinygrad import Tensor

from gemma4_core.checkpoint import check_tensors
from gemma4_core.checkpoint.names import NamedSource
from gemma4_core.contracts import WeightSource
from gemma4_core.formatting import shown_path
from gemma4_core.weights import DenseMatrix, DenseStack, ExpertStack

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


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
