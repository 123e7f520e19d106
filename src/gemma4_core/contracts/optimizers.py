"""Optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gemma4_core.contracts.context import Matches, always

if TYPE_CHECKING:
    pass


class Optimizer(Protocol):
    """What ``OptimizerBackend.build`` returns; a tinygrad optimizer is accepted as it is."""

    def step(self) -> None: ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True)
class OptimizerBackend:
    """An optimizer. ``build(named_params, *, lr, weight_decay, **options)`` gets the model's own tensors by name and
    the options that were given; where it names its options as keywords, another one is refused before it is called. It
    finds gradients in ``.grad``, is stepped inside ``Context(TRAINING=1)`` and updates in place. The object has
    ``step()``, ``zero_grad()``, ``state_dict()`` (flat, name to Tensor) and ``load_state_dict(d)``."""

    name: str
    summary: str
    build: Callable[..., Any]
    matches: Matches = always
    priority: int = 0
