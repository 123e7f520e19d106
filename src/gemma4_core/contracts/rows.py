"""Rows: what one call of the decoder works on, whatever it is for.

Decoding a token of a conversation is one row, a chunk of a prompt is many rows of one slot, and checking drafted tokens
is a few rows of one slot of which each one's choice is wanted. N rows, M of them wanted, S slots, H hidden, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tinygrad import Tensor


@dataclass(frozen=True)
class MediaRows:
    """The soft tokens of media among the rows."""

    tokens: Tensor
    """``[n, H]``: soft tokens, those of other rows among them."""
    soft: np.ndarray
    """int32 ``[N]``: which soft token stands at each row, -1 for text."""
    blocks: np.ndarray | None = None
    """int32 ``[N]``: media block whose tokens see each other in both directions, -1 elsewhere; None where the model has
    no such blocks."""

    @property
    def sees_both_ways(self) -> bool:
        """Whether any row belongs to such a block."""
        return self.blocks is not None and bool((self.blocks >= 0).any())

    def part(self, run: slice) -> MediaRows:
        """Those of some rows."""
        return MediaRows(self.tokens, self.soft[run], None if self.blocks is None else self.blocks[run])


@dataclass(frozen=True)
class Rows:
    """One call: rows with a slot and a position each. Rows of one slot follow each other and so do their positions."""

    ids: np.ndarray | Tensor
    """int32 ``[N]``, the pad id where a soft token stands; a tensor where they are still on the device."""
    slot: np.ndarray
    """int32 ``[N]``."""
    position: np.ndarray
    """int32 ``[N]``, each row its own."""
    wanted: np.ndarray
    """int32 ``[M]``: the rows whose choice, logits or hidden state are wanted, in order."""
    media: MediaRows | None = None

    @property
    def count(self) -> int:
        """Rows, N."""
        return len(self.slot)

    @property
    def runs(self) -> list[slice]:
        """The rows of each slot."""
        cuts = [0, *(np.flatnonzero(np.diff(self.slot)) + 1).tolist(), len(self.slot)]
        return [slice(a, b) for a, b in pairwise(cuts)]


@dataclass(frozen=True, eq=False)
class SamplingRows:
    """How each wanted row chooses. The same object comes again as long as the same sequences run."""

    params: np.ndarray
    """fp32 ``[M, 7]``: temperature (0 takes the largest), top-k (0 is off), top-p (1), min-p (0), repetition (1),
    presence (0) and frequency penalty (0)."""
    seed: np.ndarray
    """uint32 ``[M]``."""
    counts: Tensor | None = None
    """int32 ``[S, V]``: how often an id was generated in each slot's answer, plus 2**30 where the prompt holds it.
    Steps count what they choose. None where no row has a penalty."""
    bias: Tensor | None = None
    """fp32 ``[S, V]`` by slot, added to the logits; None where no row has any."""
    mask: np.ndarray | None = None
    """uint32 ``[M, ceil(V / 32)]``: a bit for each allowed id; None where all rows may choose any."""
    drafted: np.ndarray | None = None
    """int32 ``[M, k]``: ids that a row takes for generated besides ``counts``, -1 for none. With it nothing is
    counted."""

    @property
    def plain(self) -> bool:
        """Whether every row takes its largest logit."""
        greedy = (self.params[:, 0] == 0) | (self.params[:, 1] == 1)
        return bool(greedy.all()) and self.counts is None and self.bias is None and self.mask is None

    @property
    def simple(self) -> bool:
        """Whether temperature, cuts and the repetition penalty are all there is."""
        others = self.bias is not None or self.mask is not None or self.drafted is not None
        return not others and not self.params[:, 5:].any()

    def part(self, which: np.ndarray) -> SamplingRows:
        """Those of some rows, by a mask or numbers; without counts where none of these has a penalty."""
        params, mask = self.params[which], None if self.mask is None else self.mask[which]
        counted = bool((params[:, 4] != 1).any() or params[:, 5:].any())
        drafted = self.drafted[which] if self.drafted is not None and counted else None
        return SamplingRows(params, self.seed[which], self.counts if counted else None, self.bias, mask, drafted)
