"""Optimizer ``adamw``: Adam with decoupled weight decay on matrices only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma4_core.contracts import OptimizerBackend
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor

    from gemma4_plugins.optimizers.base import Adam


def build(named_params: dict[str, Tensor], *, lr: float, weight_decay: float, **options: Any) -> Adam:
    """Options: ``betas`` (0.9, 0.999), ``eps`` 1e-8, ``compact`` False: 8 bytes for a bfloat16 weight and its gradient
    in place of 16."""
    from gemma4_plugins.optimizers.base import Adam, flag, no_more, number, pair

    betas, eps = pair(options, "adamw"), number(options, "eps", 1e-8, 0, 1, "adamw")
    compact = flag(options, "compact", "adamw")
    no_more(options, "adamw", "betas, eps, compact")
    return Adam(named_params, lr, weight_decay, betas, eps, compact)


@hookimpl
def gemma4_optimizers() -> list[OptimizerBackend]:
    """AdamW."""
    return [OptimizerBackend("adamw", "Adam with decoupled weight decay on matrices", build)]
