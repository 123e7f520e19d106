"""The operations seam: the handful of named operations that the decoder is written against.

``Operations`` is a table of functions. ``portable()`` gives the tinygrad form of each, which runs on every backend and
is the oracle for every faster one. A device plugin returns ``dataclasses.replace(portable(), linear=mine, …)``; a
replacement that cannot serve a call (another weight format, an odd shape) passes it on to the portable form. Larger
pieces (``PIECES``) that a table brings are not used where they would pass over a replacement. Towers have a table of
their own, ``gemma4_core.ops.towers``, which a device brings as ``Operations.towers``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from tinygrad import Tensor

from gemma4_core.ops import portable as _portable
from gemma4_core.ops import sampling as _sampling
from gemma4_core.ops.dropout import Dropout as Dropout
from gemma4_core.ops.graphs import upload as upload

if TYPE_CHECKING:
    from gemma4_core.contracts.steps import (
        LayersOperation,
        StepFactory,
        TowerOperationsFactory,
    )
    from gemma4_core.ops.attention import KeyValues
    from gemma4_core.ops.fused import Fused
    from gemma4_core.weights import ExpertStack, Matrix

LAYER_KERNELS = "layer_"
"""What names of kernels begin with that ``Operations.layers`` launches for each layer, so that they are counted."""

LAYERS = ("linear", "rms_norm", "rope", "attention", "gated_mlp", "experts")
"""What the layers are made of."""
PIECES = {
    "step": (*LAYERS, "logits", "sample"),
    "layers": LAYERS,
    "towers": ("linear",),
}
"""The larger pieces of ``Operations``, and the operations that each of them stands for."""


@dataclass(frozen=True)
class Operations:
    """One function per operation. B rows, T positions, H hidden, D head size, V vocabulary."""

    name: str
    linear: Callable[[Tensor, Matrix], Tensor]
    """``x [..., in]``, matrix ``[out, in]``: ``[..., out]`` in x's dtype, accumulated in fp32."""
    rms_norm: Callable[[Tensor, Tensor | None, float], Tensor]
    """``x [..., n]`` normalised over n in fp32, times the weight ``[n]`` if any, in x's dtype."""
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    """``x [B, T, heads, D]``, cos and sin ``[T, D/2]`` or ``[B, T, D/2]``: rotate-half, in x's dtype."""
    attention: Callable[[Tensor, KeyValues], Tensor]
    """``q [B, T, heads, D]`` against keys and values: ``[B, T, heads, D]``; scale 1, softmax in fp32."""
    gated_mlp: Callable[[Tensor, Matrix, Matrix, Matrix], Tensor]
    """``down(gelu_tanh(gate(x)) * up(x))``."""
    experts: Callable[[Tensor, Tensor, Tensor, ExpertStack, ExpertStack], Tensor]
    """``x [n, H]``, chosen experts ``[n, k]``, their weights ``[n, k]`` fp32, gate_up and down stacks: ``[n, H]``."""
    logits: Callable[[Tensor, Matrix, float | None], Tensor]
    """``h [..., H]`` times the tied head, soft-capped: fp32 ``[..., V]``."""
    sample: Callable[..., tuple[Tensor, Tensor]]
    """See ``gemma4_core.ops.sampling.sample``: token ids and log-probabilities."""
    matmul: Callable[[Tensor, Tensor, str, bool], Tensor | None] | None = None
    """Products for training: ``a @ b.T`` (form "nt"), ``a @ b`` ("nn") or ``a.T @ b`` ("tn") of the last two axes, in
    a's dtype, or in fp32 where the flag says so, accumulated in fp32. Where ``a`` holds more matrices than ``b``, each
    of b's serves as many in a row. Not differentiable itself. None for what it does not serve."""
    fused: Fused | None = None
    """More kernels for training, each of several operations in one."""
    cross_entropy: Callable[[Tensor, Tensor, Matrix, float | None], Tensor] | None = None
    """Losses fp32 ``[n]`` of ``h [n, H]`` times the tied head, soft-capped, against targets int32 ``[n]``, 0 for
    negative ones. None means from ``logits``."""
    least_tokens: int = 32
    """Tokens of a training batch below which a step takes no less time here: batches are padded to as many, so that few
    different lengths come up."""
    plain_below: int = 0
    """Bytes of arguments below which kernels of training that add up nothing are compiled without tinygrad's
    optimisation, where that takes longer than it saves."""
    prefill_chunk: int = 32
    """The most positions of a prompt that this device takes in one call."""
    graph_chunk: int = 32
    """Positions per call where ``step`` does not serve and a captured graph does, padding included."""
    shared_chunk: int = 32
    """Positions of a prompt that share a step with conversations which are decoding: what a step has room for without
    making them wait."""
    step: StepFactory | None = None
    """Whole calls of the decoder taken over by the device: a token of one slot, a chunk of a prompt, or whatever its
    ``serves`` says. None, or a result of None, means operation by operation."""
    layers: LayersOperation | None = None
    """All layers and the final norm for one position, inside the graph of a decode step: the decoder, what the layers
    start from, the cache's buffers (which get the position's keys and values), the rotary tables of all positions and
    the position, bound: ``[1, 1, H]``. None, or a result of None, means layer by layer."""
    run_ahead: int = 0
    """The most steps that the device's own step lets the host queue before the first of them is read."""
    prefill_both_ways: int = 0
    """The longest chunk that it takes in which tokens of a media block see those behind them."""
    towers: TowerOperationsFactory | None = None
    """The operations of vision and audio towers that run without gradients, made from this table for a tinygrad device;
    see ``gemma4_core.ops.towers``. None means the portable ones."""
    kernels: tuple[Callable[..., Any], ...] = ()
    """Those of the operations above that are kernels without gradients: training takes the portable form of them. Any
    other operation that is not the portable one is used there too."""
    built_for: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    """The operations that each larger piece was built for, by the piece's name; filled in when a piece is given."""

    def __post_init__(self) -> None:
        """Drop larger pieces that were built for other operations than the table now has.

        ``dataclasses.replace(table, rms_norm=mine)`` so leaves a table that calls ``mine`` everywhere. A piece that is
        given together with operations, or later, is built for those.
        """
        built_for = {}
        for piece, names in PIECES.items():
            taken, now = getattr(self, piece), {name: getattr(self, name) for name in names}
            made = self.built_for.get(piece)
            if taken is None:
                continue
            if made is None or made[piece] is not taken:
                made = {piece: taken} | now
            if all(made[name] is now[name] for name in names):
                built_for[piece] = made
            else:
                object.__setattr__(self, piece, None)
        object.__setattr__(self, "built_for", built_for)

    def chunk(self, context: int) -> int:
        """Positions of a prompt that one call takes at most, for a model with this context."""
        return min(self.prefill_chunk, context)

    def longest_chunk(self, context: int, both_ways: bool) -> int:
        """Positions of the longest chunk; with media blocks whose tokens see those behind them (``both_ways``) it may
        be longer than ``chunk``. Rings of the cache have room for it beside their window."""
        return max(self.chunk(context), min(self.prefill_both_ways, context) if both_ways else 0)

    def replaced(self, name: str) -> bool:
        """Whether an operation is somebody's own: neither the portable form nor a kernel of the device."""
        return getattr(self, name) is not getattr(portable(), name) and getattr(self, name) not in self.kernels


def kernels_wanted() -> bool:
    """Whether devices may bring their own operations: not with ``GEMMA4_KERNELS=portable``."""
    return os.environ.get("GEMMA4_KERNELS", "").strip().lower() != "portable"


@cache
def portable() -> Operations:
    """The portable table."""
    return Operations(
        name="portable",
        linear=_portable.linear,
        rms_norm=_portable.rms_norm,
        rope=_portable.rope,
        attention=_portable.attention,
        gated_mlp=_portable.gated_mlp,
        experts=_portable.experts,
        logits=_portable.logits,
        sample=_sampling.sample,
    )
