"""Optimizer ``muon``: orthogonalised momentum for matrices inside layers, AdamW for everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma4_core.contracts import OptimizerBackend
from gemma4_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Hashable

    from tinygrad import Tensor

    from gemma4_plugins.optimizers.base import Adam

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the Newton-Schulz iteration (https://kellerjordan.github.io/posts/muon/)."""
TABLES = ("embed_tokens", "position_embedding_table", "router.")


def orthogonal(name: str, param: Tensor) -> bool:
    """Whether a tensor is a matrix, or a stack of them, that maps activations: no table, router or convolution."""
    return param.ndim in (2, 3) and not any(part in name for part in TABLES) and "conv" not in name


def build(named_params: dict[str, Tensor], *, lr: float, weight_decay: float, **options: Any) -> Adam:
    """Options: ``momentum`` 0.95, ``nesterov`` True, ``ns_steps`` 5; ``betas`` and ``eps`` of AdamW for the rest."""
    from gemma4_core.errors import InputError
    from gemma4_plugins.optimizers.base import Adam, flag, no_more, number, pair

    momentum = number(options, "momentum", 0.95, 0, 1, "muon")
    nesterov, steps = flag(options, "nesterov", "muon", True), options.pop("ns_steps", 5)
    betas, eps = pair(options, "muon"), number(options, "eps", 1e-8, 0, 1, "muon")
    no_more(options, "muon", "momentum, nesterov, ns_steps, betas, eps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 20:
        raise InputError(f"optimizer muon: ns_steps {repr(steps)[:100]} is not a whole number from 1 to 20")

    class Muon(Adam):
        """As tinygrad 0.14 ``nn.optim.Muon``; each matrix of an expert stack on its own."""

        elementwise = False

        def slots(self, name: str, param: Tensor) -> tuple[str, ...]:
            return ("momentum",) if orthogonal(name, param) else super().slots(name, param)

        def kind(self, name: str) -> Hashable:
            return super().kind(name), orthogonal(name, self.params[name]), momentum, nesterov, steps

        def moments(self, name: str, value: Tensor, gradient: Tensor) -> dict[str, Tensor]:
            if not orthogonal(name, value):
                return super().moments(name, value, gradient)
            return {"momentum": momentum * self.slot("momentum", name) + gradient}

        def update(self, name: str, value: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
            if not orthogonal(name, value):
                return super().update(name, value, gradient, step)
            velocity = self.slot("momentum", name)
            moved = gradient + momentum * velocity if nesterov else velocity
            direction = moved.contiguous().newton_schulz(steps, COEFFICIENTS)
            return value - self.lr * (direction + self.decay(value) * value)

    return Muon(named_params, lr, weight_decay, betas, eps)


@hookimpl
def gemma4_optimizers() -> list[OptimizerBackend]:
    """Muon."""
    return [OptimizerBackend("muon", "orthogonalised momentum for matrices in layers, AdamW for the rest", build)]
