"""What a device's own forward pass ends with: logits and the greedy choice, where it left them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinygrad import Tensor

if TYPE_CHECKING:
    from gemma4_core.generation.engine import Engine
    from gemma4_core.ops.sampling import SamplingState


@dataclass(frozen=True)
class Finished:
    """Logits fp32 ``[1, V]``, their first largest id int32 ``[1, 1]`` and its log-probability fp32 ``[1, 1]``."""

    logits: Tensor
    token: Tensor
    logprob: Tensor

    def choose(self, engine: Engine, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
        """The greedy choice, or a sampled one by the engine's sampling graph."""
        return (self.token, self.logprob) if state is None else engine.choose(self.logits, position, state)
