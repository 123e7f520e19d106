"""Optimizer ``signum``: each weight moves by the sign of its momentum (Bernstein et al. 2018, arXiv:1802.04434)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma4_core import InputError, OptimizerBackend, hookimpl

if TYPE_CHECKING:
    from tinygrad import Tensor


class Signum:
    """Keeps one momentum tensor in fp32 for each weight."""

    def __init__(self, named_params: dict[str, Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        self.params, self.lr, self.weight_decay, self.momentum = named_params, lr, weight_decay, momentum
        self.velocity = {name: p.detach().float().zeros_like().contiguous() for name, p in named_params.items()}

    def zero_grad(self) -> None:
        for param in self.params.values():
            param.grad = None

    def step(self) -> None:
        from tinygrad import Tensor

        changed = []
        for name, param in self.params.items():
            if param.grad is None:
                continue
            velocity, wide = self.velocity[name], param.detach().float()
            velocity.assign(self.momentum * velocity + (1 - self.momentum) * param.grad.float())
            moved = wide - self.lr * (velocity.sign() + self.weight_decay * wide)
            changed += [velocity, param.assign(moved.cast(param.dtype))]
        if changed:
            Tensor.realize(*changed)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"velocity.{name}": velocity for name, velocity in self.velocity.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise InputError(f"signum: the state lacks {len(missing)} tensors, such as {sorted(missing)[0]}")
        for name, velocity in self.state_dict().items():
            velocity.assign(state[name].to(velocity.device).cast(velocity.dtype)).realize()


def build(named_params: dict[str, Tensor], *, lr: float, weight_decay: float, **options: Any) -> Signum:
    momentum = options.pop("momentum", 0.9)
    if options:
        raise InputError(f"signum: unknown option {sorted(options)[0]}; it knows momentum")
    if not 0 <= momentum < 1:
        raise InputError(f"signum: momentum {momentum} is not in 0 to 1")
    return Signum(named_params, lr, weight_decay, momentum)


@hookimpl
def gemma4_optimizers() -> list[OptimizerBackend]:
    return [OptimizerBackend(name="signum", summary="the sign of the momentum", build=build)]
