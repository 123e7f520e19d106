"""What the built-in optimizers share: fp32 arithmetic, fp32 master copies of 16-bit weights, state by tensor name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

from tinygrad import Tensor, dtypes

from gemma4_core.errors import InputError
from gemma4_core.plugins.origin import nearest, one_line
from gemma4_plugins.optimizers.rounding import at_random


class NamedOptimizer(ABC):
    """Updates tensors in place, each by a rule over its value, its gradient and its slots: state such as momenta.

    A tensor whose ``.grad`` is None stays as it is and its step count too, as in torch. Weights of 16 bits are rounded
    from fp32 masters, so that small updates add up.
    """

    elementwise = True
    """Whether each new number depends on numbers at its own place alone, so that all can be written in place."""

    def __init__(
        self, named_params: Mapping[str, Tensor], lr: float, weight_decay: float, compact: bool = False
    ) -> None:
        """``compact`` keeps no masters of bfloat16 weights, and their slots in bfloat16; both are rounded at random."""
        self.params = dict(named_params)
        device = next(iter(self.params.values())).device
        held_as = lambda p: p.dtype if compact and p.dtype == dtypes.bfloat16 else dtypes.float32  # noqa: E731
        self.lr = Tensor([lr], dtype=dtypes.float32, device=device).contiguous().realize()
        self.weight_decay = weight_decay
        self.steps = {
            name: Tensor.zeros(1, dtype=dtypes.float32, device=device).contiguous() for name in self.params
        }
        """Steps that each tensor has taken; a buffer each, so that tensors of one shape share their kernels."""
        Tensor.realize(*self.steps.values())
        self.masters = {
            name: p.detach().cast(dtypes.float32).contiguous().realize()
            for name, p in self.params.items() if p.dtype != held_as(p)
        }
        self.state = {
            f"{slot}.{name}": Tensor.zeros(*p.shape, dtype=held_as(p), device=p.device).contiguous().realize()
            for name, p in self.params.items() for slot in self.slots(name, p)
        }

    @abstractmethod
    def slots(self, name: str, param: Tensor) -> tuple[str, ...]:
        """Names of a tensor's state, such as ``("m", "v")``: each is a tensor of its shape, zero at first."""

    @abstractmethod
    def moments(self, name: str, value: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """The new content of the slots. All fp32."""

    @abstractmethod
    def update(self, name: str, value: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """The new value, with the slots as ``moments`` left them. All fp32; ``step [1]`` counts from 1."""

    def decay(self, value: Tensor) -> float:
        """The weight decay of a tensor: matrices decay, norms and scalars do not."""
        return self.weight_decay if value.ndim >= 2 else 0.0

    def kind(self, name: str) -> Hashable:
        """All that the rule of a parameter depends on besides its tensors: parameters of equal kind, shapes and types
        are updated by the same program, also in another process."""
        return type(self).__qualname__, self.decay(self.params[name])

    def schedule_step(self) -> list[Tensor]:
        """The step as lazy assignments: what must be realized for it to happen.

        Slots are written first and read back for the value: one pass over memory for each, and nothing in between.
        """
        active = {name: p for name, p in self.params.items() if p.grad is not None}
        changed: list[Tensor] = []
        for name, param in active.items():
            assert param.grad is not None
            held = self.masters.get(name, param)
            step = self.steps[name].assign(self.steps[name] + 1)
            changed.append(step)
            value, gradient = held.detach().cast(dtypes.float32), param.grad.cast(dtypes.float32)
            moments = self.moments(name, value, gradient)
            for salt, (slot, moment) in enumerate(moments.items(), 1):
                changed.append(assigned(self.state[f"{slot}.{name}"], moment, step, salt))
            changed.append(assigned(held, self.update(name, value, gradient, step), step, 0))
            if held is not param:
                param.assign(held.cast(param.dtype))
                changed.append(param)
        return changed

    def slot(self, slot: str, name: str) -> Tensor:
        """A tensor's state of this name, fp32."""
        return self.state[f"{slot}.{name}"].cast(dtypes.float32)

    def step(self) -> None:
        """Update all tensors that have a gradient."""
        Tensor.realize(*self.schedule_step())

    def zero_grad(self) -> None:
        """Forget gradients."""
        for param in self.params.values():
            param.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Learning rate, step counts, slots and masters by flat name."""
        masters = {f"master.{name}": tensor for name, tensor in self.masters.items()}
        steps = {f"steps.{name}": tensor for name, tensor in self.steps.items()}
        return {"lr": self.lr, **steps, **self.state, **masters}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in place. Raises InputError where tensors are missing."""
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        if missing:
            raise InputError(f"the optimizer state lacks {len(missing)} tensors, such as {missing[0]}")
        for name in self.steps:
            taken = float(state[f"steps.{name}"].numpy().reshape(-1)[0])
            if not 0 <= taken == math.floor(taken):
                raise InputError(f"the optimizer state's steps.{name} is {taken:g}, not a whole number from 0")
        for name, tensor in own.items():
            tensor.assign(state[name].to(tensor.device).cast(tensor.dtype).contiguous()).realize()


class Adam(NamedOptimizer):
    """AdamW's moments and update, which other optimizers here build on or fall back to."""

    def __init__(
        self, named_params: Mapping[str, Tensor], lr: float, weight_decay: float, betas: tuple[float, float],
        eps: float, compact: bool = False,
    ) -> None:  # fmt: skip
        self.betas, self.eps = betas, eps
        super().__init__(named_params, lr, weight_decay, compact)

    def slots(self, name: str, param: Tensor) -> tuple[str, ...]:
        return ("m", "v")

    def moments(self, name: str, value: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        one, two = self.betas
        m = one * self.slot("m", name) + (1 - one) * gradient
        return {"m": m, "v": two * self.slot("v", name) + (1 - two) * gradient.square()}

    def kind(self, name: str) -> Hashable:
        return super().kind(name), self.betas, self.eps

    def direction(self, name: str, step: Tensor) -> Tensor:
        """The bias-corrected first moment over the root of the second."""
        one, two = self.betas
        unbiased = lambda slot, beta: self.slot(slot, name) / (1 - (step * math.log(beta)).exp())  # noqa: E731
        return unbiased("m", one) / (unbiased("v", two).sqrt() + self.eps)

    def update(self, name: str, value: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
        """AdamW with decoupled decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
        return value - self.lr * (self.direction(name, step) + self.decay(value) * value)


def assigned(target: Tensor, value: Tensor, step: Tensor, salt: int) -> Tensor:
    """``target`` with fp32 ``value`` assigned, rounded at random where it is bfloat16."""
    return target.assign(at_random(value, step, salt) if target.dtype == dtypes.bfloat16 else value)


def number(options: dict[str, Any], key: str, default: float, low: float, high: float, name: str) -> float:
    """Take an option that lies in ``low <= value < high``. Raises InputError."""
    value = options.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise InputError(f"optimizer {name}: {key} {one_line(repr(value))} is not a number from {low:g} to below "
                         f"{high:g}")
    return float(value)


def pair(options: dict[str, Any], name: str) -> tuple[float, float]:
    """Take ``betas``, two numbers from 0 to below 1. Raises InputError."""
    value = options.pop("betas", (0.9, 0.999))
    fine = isinstance(value, list | tuple) and len(value) == 2
    if not fine or not all(isinstance(beta, int | float) and 0 < beta < 1 for beta in value):
        raise InputError(f"optimizer {name}: betas {one_line(repr(value))} are not two numbers between 0 and 1")
    return float(value[0]), float(value[1])


def flag(options: dict[str, Any], key: str, name: str, default: bool = False) -> bool:
    """Take an option that is true or false. Raises InputError."""
    value = options.pop(key, default)
    if not isinstance(value, bool):
        raise InputError(f"optimizer {name}: {key} {one_line(repr(value))} is neither true nor false")
    return value


def no_more(options: dict[str, Any], name: str, known: str) -> None:
    """Refuse options that no rule takes."""
    if options:
        odd = sorted(options)[0]
        raise InputError(f"optimizer {name}: unknown option {odd}{nearest(odd, known.split(', '))}; it knows {known}")
