"""Which weights the kernels may read in place."""

from __future__ import annotations

from collections.abc import Mapping

from tinygrad import Tensor

from gemma4_core.weights import DenseMatrix, DenseStack, ExpertStack, Matrix
from gemma4_plugins.layouts.int8 import Int8Matrix, Int8Stack

KINDS = (DenseMatrix, DenseStack, Int8Matrix, Int8Stack)


def stored(matrix: Matrix | ExpertStack | None) -> Mapping[str, Tensor]:
    """The storage tensors of a matrix that is nothing but these; empty for every other kind.

    The class must be one of ours exactly: a wrapper, or a kind derived from ours, may hand on the parts of what it
    wraps and compute something else with them.
    """
    return matrix.parts() if matrix is not None and type(matrix) in KINDS else {}
