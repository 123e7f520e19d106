"""What a device's own forward pass ends with: logits and the greedy choice, where it left them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinygrad import Tensor

if TYPE_CHECKING:
    from gemma4_core.engine.engine import Engine
    from gemma4_core.ops.sampling import SamplingState


@dataclass(frozen=True)
class Finished:
    """Logits fp32 ``[1, V]``, their first largest id int32 ``[1, 1]`` and its log-probability fp32 ``[1, 1]``."""

    logits: Tensor
    token: Tensor
    logprob: Tensor
    draw: Callable[[int, SamplingState], tuple[Tensor, Tensor]] | None = None
    """The device's own way to draw the token at a position from these logits; None: the engine's graph does."""

    def choose(self, engine: Engine, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
        """The greedy choice, or a sampled one."""
        if state is None:
            return self.token, self.logprob
        return engine.choose(self.logits, position, state) if self.draw is None else self.draw(position, state)
