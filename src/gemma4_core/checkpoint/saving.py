"""Writing a checkpoint: weights as safetensors files in a format's encoding, config.json, and the files beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemma4_core.checkpoint.blocks import SavedWeights
from gemma4_core.checkpoint.folder import copy_others, write_config
from gemma4_core.checkpoint.writer import Planned, write_shards
from gemma4_core.contracts import CheckpointFormat, Context, WeightBlocks


@dataclass(frozen=True)
class Encoded:
    """How a format stores one weight in safetensors files."""

    parts: Mapping[str, tuple[str, tuple[int, ...]]]
    """dtype and shape of each stored tensor by the suffix that follows the weight's name; the largest comes first."""
    blocks: Callable[[], Iterable[Sequence[np.ndarray]]]
    """The numbers: for each block of rows an array for each part. Called once, or again after an interruption."""


def save_safetensors(
    weights: Sequence[WeightBlocks], folder: Path, encode: Callable[[WeightBlocks], Encoded | None] | None = None
) -> None:
    """Write weights as ``model.safetensors``, or as numbered shards with an index.

    Args:
        weights: as a format's ``save`` gets them.
        folder: the folder to write into.
        encode: how a weight is stored; None, or what returns None, stores it as it is, in its own dtype.

    Raises:
        CheckpointError: what ``encode`` or the weights raise.
        OSError: the disk has too little room, or writing failed.
    """
    writer = PartWriter(weights, encode or (lambda weight: None))
    saved = weights if isinstance(weights, SavedWeights) else SavedWeights(weights)
    write_shards(folder, writer.plan, writer.data, saved.shard_bytes, resume=saved.resume)


class PartWriter:
    """The plan of what is stored, and its bytes one tensor at a time."""

    def __init__(
        self, weights: Iterable[WeightBlocks], encode: Callable[[WeightBlocks], Encoded | None]
    ) -> None:
        self.plan: list[Planned] = []
        self.waiting: dict[str, tuple[Encoded, int, list[str]]] = {}
        """Encoding, number of the part, and names of all parts of the weight, by stored name."""
        self.ready: dict[str, np.ndarray] = {}
        """Small parts that were made while a larger one was written."""
        for weight in weights:
            encoded = encode(weight) or plain(weight)
            names = [weight.name + suffix for suffix in encoded.parts]
            for number, (name, (dtype, shape)) in enumerate(zip(names, encoded.parts.values(), strict=True)):
                self.plan.append(Planned(name, dtype, shape))
                self.waiting[name] = (encoded, number, names)

    def data(self, planned: Planned) -> Iterator[memoryview]:
        """The bytes of a stored tensor in pieces."""
        encoded, number, names = self.waiting.pop(planned.name)
        if planned.name in self.ready:
            yield raw(self.ready.pop(planned.name))
            return
        later: dict[str, list[np.ndarray]] = {name: [] for name in names[number + 1 :] if name in self.waiting}
        for arrays in encoded.blocks():
            for name, array in zip(names, arrays, strict=True):
                if name in later:
                    later[name].append(array)
            yield raw(arrays[number])
        for name, pieces in later.items():
            if pieces:
                self.ready[name] = np.concatenate(pieces)


def plain(weight: WeightBlocks) -> Encoded:
    """A weight in its own dtype."""
    return Encoded({"": (weight.dtype, weight.shape)}, lambda: ([bits] for bits in weight.bits()))


def raw(array: np.ndarray) -> memoryview:
    """An array's bytes in order."""
    return np.ascontiguousarray(array).reshape(-1).data.cast("B") if array.size else memoryview(b"")


def write_checkpoint(
    folder: Path, context: Context, chosen: CheckpointFormat, weights: SavedWeights, dtype: str
) -> None:
    """Fill an empty folder with a checkpoint: weights, config.json and the files beside them.

    Args:
        folder: an existing empty folder.
        context: the checkpoint that the weights belong to.
        chosen: the format to write; it must have ``save``.
        weights: all of them.
        dtype: name of the type that the result computes in, such as ``bfloat16``.
    """
    assert chosen.save is not None
    manifest = chosen.save(weights, folder, context)
    write_config(context.raw_config, dtype, folder, None if manifest is None else {"name": chosen.name, **manifest})
    copy_others(context, folder)
