"""Optimizer ``lamb``: AdamW's direction, scaled for each tensor to the size of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma4_core.contracts import OptimizerBackend
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_plugins.optimizers.base import Adam


def build(named_params: dict[str, Tensor], *, lr: float, weight_decay: float, **options: Any) -> Adam:
    """Options: ``betas`` (0.9, 0.999), ``eps`` 1e-6."""
    from gemma4_plugins.optimizers.base import Adam, no_more, number, pair

    betas, eps = pair(options, "lamb"), number(options, "eps", 1e-6, 0, 1, "lamb")
    no_more(options, "lamb", "betas, eps")

    class Lamb(Adam):
        """You et al. 2020, arXiv:1904.00962."""

        elementwise = False

        def update(self, name: str, value: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
            moved = (self.direction(name, step) + self.decay(value) * value).contiguous()
            size, length = value.square().sum().sqrt(), moved.square().sum().sqrt()
            ratio = ((size > 0) & (length > 0)).where(size / length.maximum(1e-30), 1.0)
            return value - self.lr * ratio * moved

    return Lamb(named_params, lr, weight_decay, betas, eps)


@hookimpl
def gemma4_optimizers() -> list[OptimizerBackend]:
    """LAMB."""
    return [OptimizerBackend("lamb", "AdamW scaled by the size of each tensor, for large batches", build)]
