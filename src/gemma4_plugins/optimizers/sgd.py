"""Optimizer ``sgd``: stochastic gradient descent, with optional momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma4_core.contracts import OptimizerBackend
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tinygrad import Tensor

    from gemma4_plugins.optimizers.base import NamedOptimizer


def build(named_params: dict[str, Tensor], *, lr: float, weight_decay: float, **options: Any) -> NamedOptimizer:
    """Options: ``momentum`` 0, ``nesterov`` False."""
    from gemma4_plugins.optimizers.base import NamedOptimizer, flag, no_more, number

    momentum = number(options, "momentum", 0.0, 0, 1, "sgd")
    nesterov = flag(options, "nesterov", "sgd")
    no_more(options, "sgd", "momentum, nesterov")

    class Sgd(NamedOptimizer):
        """The rule of torch.optim.SGD with dampening 0; decay on matrices only."""

        def slots(self, name: str, param: Tensor) -> tuple[str, ...]:
            return ("momentum",) if momentum else ()

        def kind(self, name: str) -> Hashable:
            return super().kind(name), momentum, nesterov

        def decayed(self, value: Tensor, gradient: Tensor) -> Tensor:
            """The gradient of the loss with the decay's penalty."""
            return gradient + self.decay(value) * value if self.decay(value) else gradient

        def moments(self, name: str, value: Tensor, gradient: Tensor) -> dict[str, Tensor]:
            if not momentum:
                return {}
            return {"momentum": momentum * self.slot("momentum", name) + self.decayed(value, gradient)}

        def update(self, name: str, value: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
            if not momentum:
                return value - self.lr * self.decayed(value, gradient)
            velocity = self.slot("momentum", name)
            moved = self.decayed(value, gradient) + momentum * velocity if nesterov else velocity
            return value - self.lr * moved

    return Sgd(named_params, lr, weight_decay)


@hookimpl
def gemma4_optimizers() -> list[OptimizerBackend]:
    """SGD."""
    return [OptimizerBackend("sgd", "stochastic gradient descent with optional momentum", build)]
