"""What the steps of a device take and give: a chunk of a prompt, and the logits that a prompt ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tinygrad import Tensor

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import DecoderView
    from gemma4_core.ops.sampling import SamplingState


@dataclass(frozen=True)
class Chunk:
    """Positions to append in one go: ids ``[B, n]`` with the pad id where soft tokens stand, and what replaces them."""

    ids: np.ndarray
    soft: np.ndarray | None = None
    """int32 ``[B, n]``: row of the soft tokens for each position, -1 for text; None without media."""
    blocks: np.ndarray | None = None
    """int32 ``[B, n]``: media block of each position, -1 for text; None where no block is bidirectional."""
    signature: Sequence[int] = ()
    """What the cache records of row 0: ids, and content hashes at soft positions."""

    @property
    def sees_both_ways(self) -> bool:
        """Whether tokens of a media block see those behind them."""
        return self.blocks is not None and bool((self.blocks >= 0).any())


@dataclass(frozen=True)
class PrefillResult:
    """What a device's own forward pass of a prompt ends with: logits fp32 ``[1, V]``, their first largest id int32
    ``[1, 1]`` and its log-probability fp32 ``[1, 1]``."""

    logits: Tensor
    token: Tensor
    logprob: Tensor
    draw: Callable[[int, SamplingState], tuple[Tensor, Tensor]] | None = None
    """The device's own way to draw the token at a position from these logits; None: the engine's graph does."""

    def choose(self, view: DecoderView, position: int, state: SamplingState | None) -> tuple[Tensor, Tensor]:
        """The greedy choice, or a sampled one: ids int32 ``[1, 1]`` and log-probabilities."""
        if state is None:
            return self.token, self.logprob
        return view.choose(self.logits, position, state) if self.draw is None else self.draw(position, state)
