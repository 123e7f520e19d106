"""Streaming the weights of an open checkpoint into another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma4_core.checkpoint.blocks import RowBlocks, TensorBlocks
from gemma4_core.checkpoint.convert import RUN_NAMES, STORED
from gemma4_core.checkpoint.opening import Checkpoint
from gemma4_core.checkpoint.roles import Roles
from gemma4_core.config import ignorable

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_core.weights import ExpertStack, Matrix


def stream_weights(checkpoint: Checkpoint, dtype: str, keep: bool = False) -> list[RowBlocks | TensorBlocks]:
    """All weights that a model uses as a format's ``save`` takes them, none of them read yet.

    Args:
        checkpoint: the open checkpoint; it stays open until they are written.
        dtype: name of the type that the result computes in, such as ``bfloat16``.
        keep: whether quantised weights are given as what they are held as too, for writing them in the same format
            without quantising them again.
    """
    roles = Roles(checkpoint.config)
    names = [name for name in checkpoint.infos if not ignorable(checkpoint.config, name)]
    return [stream_weight(checkpoint, name, roles, RUN_NAMES[dtype], keep) for name in names]


def stream_weight(
    checkpoint: Checkpoint, name: str, roles: Roles, stored: str, keep: bool
) -> RowBlocks | TensorBlocks:
    """One weight; ``stored`` is the file format's name of the type that the result computes in."""
    from gemma4_core.checkpoint.upload import DTYPES

    source, info = checkpoint.weights, checkpoint.infos[name]
    role = roles.of(name, info.shape)

    def make() -> Tensor:
        return source.tensor(name, "PYTHON", DTYPES[stored])

    def hold() -> Matrix | ExpertStack:
        of = source.stack if len(info.shape) == 3 else source.matrix
        return of(name, "PYTHON", DTYPES[stored])

    if len(info.shape) < 2:
        return TensorBlocks(name, info.shape, role, stored, make)
    read = source.row_reader(name, in_memory=False)
    return RowBlocks(name, info.shape, role, stored, read, hold if keep and info.dtype not in STORED else None)
