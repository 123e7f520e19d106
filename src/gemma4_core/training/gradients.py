"""Gradients on their way to an optimizer: whether there are any, their global norm, and where optimizers look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinygrad import Tensor, dtypes
from tinygrad.nn.optim import Optimizer as TinygradOptimizer

PARTS = 128
"""Pieces of a tensor whose squares are summed side by side."""
TOGETHER = 16
"""Tensors that one kernel reads; some devices allow no more than 31."""


def reached(gradient: Tensor | None) -> bool:
    """Whether the loss depends on a tensor at all: tinygrad gives a constant where it does not."""
    return gradient is not None and gradient.uop.device is not None


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The root of the sum of all squares, an fp32 scalar.

    In kernels that many tensors have in common, and without one that reads them all: first ``PARTS`` sums of each
    tensor, which are then added ``TOGETHER`` at a time.
    """
    parts = [partial_squares(tensor) for tensor in tensors]
    while len(parts) > 1:
        groups = [parts[first : first + TOGETHER] for first in range(0, len(parts), TOGETHER)]
        parts = [sum(group[1:], group[0]).contiguous() for group in groups]
    return parts[0].sum().sqrt().contiguous()


def partial_squares(tensor: Tensor) -> Tensor:
    """Sums of squares of ``PARTS`` pieces of a tensor: fp32 ``[PARTS]``."""
    flat = tensor.flatten()
    filled = flat.pad(((0, -int(flat.shape[0]) % PARTS),))
    # [n] -> [PARTS, n / PARTS] -> [PARTS]
    return filled.reshape(PARTS, -1).cast(dtypes.float32).square().sum(1).contiguous()


def set_gradients(
    optimizer: Any, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], max_norm: float | None
) -> Tensor | None:
    """Put gradients where optimizers look for them, scaled down to a global norm where one is given; the norm before.

    Parameters that the loss does not depend on get none; tinygrad's own optimizers, which need one, get zeros.
    """
    needed = isinstance(optimizer, TinygradOptimizer)
    norm = factor = None
    if max_norm is not None:
        norm = global_norm(list(gradients.values()))
        factor = (max_norm / norm.maximum(1e-12)).minimum(1.0).contiguous()
        Tensor.realize(norm, factor)
    for name, param in parameters.items():
        gradient = gradients.get(name)
        if gradient is None:
            param.grad = param.zeros_like().contiguous() if needed else None
        else:
            param.grad = gradient if factor is None else (gradient * factor).cast(gradient.dtype)
    return norm
